"""The course of `qwen3-tts bench` and bench_server.py: points or a search, alone or compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rich.table import Table

from qwen3_tts_client.load import real_time
from qwen3_tts_client.load.compare import Measure, comparison, measure_in_turns
from qwen3_tts_client.load.record import Run, head_of
from qwen3_tts_client.load.streams import Load

SECONDS, WARM_UP, PATIENCE = 15.0, 4.0, 10.0  # of a point
OTHER, OURS = "other", "ours"


def times(seconds: float | None, warm_up: float | None, patience: float | None, *, is_real_time: bool) -> tuple[float, float, float]:
    """These, with the usual ones in the place of None: those of a point, or of a step of the search."""
    usual = (real_time.SECONDS, real_time.WARM_UP, real_time.PATIENCE) if is_real_time else (SECONDS, WARM_UP, PATIENCE)
    chosen = [default if given is None else given for given, default in zip((seconds, warm_up, patience), usual, strict=True)]
    return chosen[0], chosen[1], chosen[2]


class Measuring:
    """Measures one point after the other and keeps the figures.

    Args:
        measure: puts a load on its server for some seconds.
        load: of all points, without streams and rate.
        seconds: those of a point in the settings; an open loop may have more.
        other: what to compare with: an earlier run, or HOST:PORT of a server that is measured in turns with ours; None: nothing.
        add: is told of each point that has been measured.

    Attributes:
        results: our points.
        more: further keys for the file of figures.
    """

    def __init__(
        self, measure: Measure, load: Load, seconds: float, *, other: Run | str | None, add: Callable[[dict[str, object]], None]
    ) -> None:
        self._measure, self._load, self._other, self._add = measure, load, other, add
        self.results: list[dict[str, object]] = []
        self.more = head_of(load, seconds)
        self._theirs: list[dict[str, object]] = []
        self._their_real_time: dict[str, object] | None = None
        self._ours_real_time: dict[str, object] | None = None

    def measure(self, streams: int, rate: float, seconds: float, **facts: object) -> None:
        """Measure a closed loop of `streams`, or if that is 0 an open loop of `rate` requests a second. `facts` stand in the point, too."""
        load, point = replace(self._load, streams=streams, rate=rate), {**facts, "streams": streams, "rate": rate}
        if isinstance(self._other, str):
            ours, theirs = measure_in_turns(self._measure, load, seconds, self._other)
            self._took(point | theirs | {"server": OTHER}, self._theirs)
            self._took(point | ours | {"server": OURS}, self.results)
        else:
            self._took(point | self._measure(load, seconds).figures, self.results)

    def find_real_time(self, first: int, most: int, seconds: float) -> list[str]:
        """Search for the most real-time streams, of the other server too; returns lines for people. See real_time.search."""
        lines: list[str] = []
        if isinstance(self._other, str):
            found = self._search(first, most, seconds, other=self._other)
            self._their_real_time = found.as_json()
            lines += [f"{OTHER}: {line}" for line in found.lines()]
        found = self._search(first, most, seconds)
        self._ours_real_time = self.more["real_time"] = found.as_json()
        return lines + found.lines()

    def compared(self) -> Table | None:
        """The comparison; None if there is nothing to compare with."""
        return None if self.theirs is None else comparison(Run(OURS, {}, self.results, self._ours_real_time), self.theirs)

    @property
    def theirs(self) -> Run | None:
        """What ours is compared with; None: nothing."""
        return Run(self._other, {}, self._theirs, self._their_real_time) if isinstance(self._other, str) else self._other

    def _search(self, first: int, most: int, seconds: float, other: str | None = None) -> real_time.Found:
        """Search on the other server, or on ours."""
        url = self._load.url if other is None else other
        into = self.results if other is None else self._theirs
        names = {"server": OURS if other is None else OTHER} if isinstance(self._other, str) else {}

        def step(streams: int) -> dict[str, object]:
            load = replace(self._load, url=url, streams=streams, paced=True)
            figures = {"streams": streams, "rate": 0.0, "paced": True, **self._measure(load, seconds).figures, **names}
            figures["sustained"] = not real_time.faults(figures)
            self._took(figures, into)
            return figures

        return real_time.search(step, first, most)

    def _took(self, point: dict[str, object], into: list[dict[str, object]]) -> None:
        into.append(point)
        if self._theirs:
            self.more["compared"] = {"with": self._other, "results": self._theirs, "real_time": self._their_real_time}
        self._add(point)
