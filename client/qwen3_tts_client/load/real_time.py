"""The search for the most real-time streams: doubling until a number is too many, then bisection.

A step is a closed loop of paced streams. A server carries it if no listener hears a pause in the window, no request fails, and 95 % of
the requests have first audio within a second (otherwise a server with a long queue would seem to carry any number).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qwen3_tts_client.load.clients import BUSY_CLIENT
from qwen3_tts_client.load.figures import DONE, FAILED, P95, REFUSED, UNFINISHED

SECONDS, WARM_UP, PATIENCE = 30.0, 8.0, 30.0  # of a step; PATIENCE lets the streams that run at its end end by themselves
FIRST, MOST = 1, 600  # numbers of streams
PRECISION = 0.05  # the search ends when the next number is less than this share away
LONGEST_FIRST_AUDIO_MS = 1000.0  # p95

Figures = Mapping[str, object]


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        streams: the most that were carried; 0: not even one.
        too_many: the fewest that were not; None: all that were tried were carried.
        why: what went wrong with these.
        client_cpu: share of one core that the busiest client process needed with these, or with `streams` if there are none.
    """

    streams: int
    too_many: int | None
    why: list[str]
    client_cpu: float

    @property
    def is_client_limited(self) -> bool:
        """Whether the client was so busy that it may be the limit, and not the server."""
        return self.client_cpu > BUSY_CLIENT

    def as_json(self) -> dict[str, object]:
        """For the file of figures."""
        return {
            "streams": self.streams,
            "too_many": self.too_many,
            "why": self.why,
            "client_cpu": self.client_cpu,
            "client_limited": self.is_client_limited,
        }

    def lines(self) -> list[str]:
        """For people."""
        ended = "the most that may be tried: raise --to" if self.too_many is None else f"{self.too_many}: {', '.join(self.why)}"
        lines = [f"real-time streams: {self.streams} ({ended})"]
        if self.is_client_limited:
            lines.append(
                f"the client was the limit, or near it: its busiest process needed {self.client_cpu:.0%} of a core; "
                "raise --processes, or use another machine for it"
            )
        return lines


def faults(point: Figures) -> list[str]:
    """What went wrong at a step; empty if the server carries it."""
    found = [f"{point[outcome]} {outcome}" for outcome in (REFUSED, FAILED, UNFINISHED) if point[outcome]]
    if point["underruns"]:
        found.insert(0, f"{point['underruns']} late chunks in {point['streams_with_underruns']} streams")
    if not point[DONE]:
        found.append("no stream began and ended")
    waited = point[P95]
    if isinstance(waited, float) and waited > LONGEST_FIRST_AUDIO_MS:
        found.append(f"first audio p95 {waited:.0f} ms, more than {LONGEST_FIRST_AUDIO_MS:.0f}")
    return found


def search(measure: Callable[[int], Figures], first: int, most: int) -> Found:
    """Search between 1 and `most` streams, from `first` on.

    Args:
        measure: puts a number of streams on the server and returns the figures.
    """
    points: dict[int, Figures] = {}

    def carries(count: int) -> bool:
        points[count] = measure(count)
        return not faults(points[count])

    low, high, _ = _search(carries, first, most)
    last = points[low if high is None else high]
    return Found(low, high, [] if high is None else faults(last), float(str(last["client_cpu"])))


def most_steps(first: int, most: int) -> int:
    """The most steps that such a search takes."""
    return max(_search(limit.__ge__, first, most)[2] for limit in range(most + 1))


def _search(carries: Callable[[int], bool], first: int, most: int) -> tuple[int, int | None, int]:
    """(the most that is carried, the fewest that is not, steps)."""
    low, high, steps = 0, None, 0
    count: int | None = min(first, most)
    while count is not None:
        steps += 1
        if carries(count):
            low = count
        else:
            high = count
        count = _next(low, high, most)
    return low, high, steps


def _next(low: int, high: int | None, most: int) -> int | None:
    """The number to try next; None: the search has ended."""
    if high is None:
        return min(2 * low, most) if low < most else None
    return (low + high) // 2 if high - low > max(1, PRECISION * low) else None
