"""What a soak says of memory: how fast that of each process grows, and which growth is judged.

Private memory of all our processes together is judged: a run fails if it grows too fast, in the second half of the time too, because a
cache that fills is no leak. That of tritonserver is judged apart in the same way, unless its version is known to keep requests of clients
that leave and the load has such clients: then the report says how much it grew, and that it was not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fuzzing.resources import TRITON

from engine_lib.server.releases import keeps_requests
from soaking.flatness import Slope, slope
from soaking.samples import Sample

PREFIX = "memory_mb"  # of the names in a sample: of all processes, and with the name of one behind it
OURS = f"{PREFIX} ours"  # all but tritonserver
TRITONS = f"{PREFIX} {TRITON}"


@dataclass(frozen=True)
class Memory:
    """How memory grew.

    Attributes:
        slopes: of each process, of all of ours, and of all; None: too few samples.
        late_slopes: the same in the second half of the time.
        kb_per_request: the same, for each request that was sent meanwhile.
        limit: MB an hour that are no fault.
        is_judged: whether the run was long enough.
        excused: why tritonserver is not judged; "": it is.
    """

    slopes: dict[str, Slope | None]
    late_slopes: dict[str, Slope | None]
    kb_per_request: dict[str, float]
    limit: float
    is_judged: bool
    excused: str

    def reasons(self) -> list[str]:
        """Why the run is a failure."""
        judged = [OURS, *([] if self.excused else [TRITONS])] if self.is_judged else []
        return [
            f"{name.removeprefix(PREFIX).strip()}: memory grows by {line}, which is surely more than {self.limit:g}"
            for name in judged
            if (line := self.slopes.get(name)) is not None and line.is_above(self.limit) and self._grows_late(name)
        ]

    def _grows_late(self, name: str) -> bool:
        late = self.late_slopes.get(name)
        return late is None or late.is_above(self.limit)

    def not_judged(self) -> list[str]:
        """What was seen and not judged, in words."""
        if not self.is_judged:
            return ["memory: too few requests or samples"]
        line = self.slopes.get(TRITONS)
        return [f"{TRITON}: {line}, {self.kb_per_request[TRITONS]:.2f} KB a request; {self.excused}"] if self.excused else []

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "is_memory_judged": self.is_judged,
            "not_judged": self.not_judged(),
            "slopes": {
                name: None if line is None else asdict(line) | {"kb_per_request": self.kb_per_request[name]}
                for name, line in self.slopes.items()
            },
            "late_slopes": {name: None if line is None else asdict(line) for name, line in self.late_slopes.items()},
        }


def growth_of(samples: Sequence[Sample], warm_up_requests: int, limit: float, excused: str) -> Memory:
    """What the samples of a load say, from those on before which so many requests were sent; if there are too few, all of them."""
    warm = [sample for sample in samples if sample["sent"] >= warm_up_requests]
    shown = warm or samples
    seconds = [sample["seconds"] for sample in shown]
    names = [name for name in (shown[-1] if shown else {}) if name.startswith(PREFIX) or name == "gpu_mb"]
    values = {name: [sample.get(name, 0.0) for sample in shown] for name in names}
    if TRITONS in values:
        values[OURS] = [everything - triton for everything, triton in zip(values[PREFIX], values[TRITONS], strict=True)]
    slopes = {name: slope(seconds, levels) for name, levels in values.items()}
    half = len(shown) // 2
    late_slopes = {name: slope(seconds[half:], levels[half:]) for name, levels in values.items()}
    sent = shown[-1]["sent"] - shown[0]["sent"] if shown else 0.0
    hours = (seconds[-1] - seconds[0]) / 3600 if shown else 0.0
    each = {name: round(line.per_hour * hours * 1024 / sent, 3) if line and sent else 0.0 for name, line in slopes.items()}
    return Memory(slopes, late_slopes, each, limit, bool(warm) and slopes.get(OURS) is not None, excused)


def excuse(version: str, share_that_leaves: float) -> str:
    """Why a tritonserver of this version may grow under a load, if this share of its clients leave or send errors; "": it may not."""
    if not share_that_leaves or not keeps_requests(version):
        return ""
    return f"{version} keeps some requests of clients that leave (docs/starting_and_stopping.md)"
