"""Shows the points of a load: a table that fills while it is measured.

If the output is no terminal, each point is a plain row when it is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from qwen3_tts_client.load.clients import BUSY_CLIENT
from qwen3_tts_client.load.figures import DONE, FAILED, REFUSED, UNFINISHED

if TYPE_CHECKING:
    from typing_extensions import Self

Figures = Mapping[str, object]
WIDEST = 120  # characters


def wide_console() -> Console:
    """A console as wide as the terminal, or as the widest table if the output is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDEST)


def number(point: Figures, name: str, decimals: int = 1, scale: float = 1.0) -> str:
    """A figure of a point; "-" if there is none."""
    value = point.get(name)
    return f"{value * scale:.{decimals}f}" if isinstance(value, (int, float)) else "-"


def load_name(point: Figures) -> str:
    """The load of a point: "16 streams", "16 paced" or "2.5 /s"."""
    if not point["streams"]:
        return f"{point['rate']:g} /s"
    return f"{point['streams']} {'paced' if point.get('paced') else 'streams'}"


def _underruns(point: Figures) -> str:
    return f"{point['streams_with_underruns']}/{point['underruns']}" if "underruns" in point else "-"


def _errors(point: Figures) -> str:
    return str(sum(int(str(point.get(outcome, 0))) for outcome in (REFUSED, FAILED, UNFINISHED)))


class Column(NamedTuple):
    """A column of the table: its heading on two lines, its least width, and its cell of a point."""

    heading: str
    width: int
    cell: Callable[[Figures], str]


DONE_COLUMN = Column("\ndone", 5, lambda point: number(point, DONE, 0))

# 80 characters, unless a figure is wider.
COLUMNS = (
    Column("\nload", 10, load_name),
    Column("first\np50 ms", 6, lambda point: number(point, "first_audio_p50_ms")),
    Column("audio\np95", 5, lambda point: number(point, "first_audio_p95_ms")),
    Column("audible\np50 ms", 7, lambda point: number(point, "first_audible_p50_ms")),
    Column("\np95", 5, lambda point: number(point, "first_audible_p95_ms")),
    Column("gap\np99 ms", 6, lambda point: number(point, "gap_p99_ms")),
    Column("late\nchunks", 6, _underruns),
    Column("\nRTF", 4, lambda point: number(point, "real_time_factor_p50", 2)),
    Column("audio-\ns/s", 6, lambda point: number(point, "audio_seconds_per_second")),
    DONE_COLUMN,
    Column("err-\nors", 4, _errors),
    Column("CPU\n%", 3, lambda point: number(point, "client_cpu", 0, 100)),
)
# In place of DONE_COLUMN for paced points; beside the others for points that have them.
VERDICT = Column("real\ntime", 5, lambda point: ("yes" if point["sustained"] else "no") if "sustained" in point else "")
GPU = Column("GPU\n%", 3, lambda point: number(point, "gpu_utilization", 0))
SERVER = Column("\nserver", 6, lambda point: str(point.get("server", "")))


def columns_of(points: Sequence[Figures]) -> list[Column]:
    """The columns that these points need."""
    columns = [VERDICT if column is DONE_COLUMN and any(point.get("paced") for point in points) else column for column in COLUMNS]
    columns += [GPU] * any("gpu_utilization" in point for point in points)
    return [SERVER] * any("server" in point for point in points) + columns


def table_of(points: Sequence[Figures], *, heading: bool = True, columns: Sequence[Column] | None = None) -> Table:
    """Points as a table; `columns` None: those that these points need."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=heading)
    columns = columns_of(points) if columns is None else columns
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True, min_width=column.width)
    for point in points:
        table.add_row(*(column.cell(point) for column in columns))
    return table


def notes_on(point: Figures) -> list[str]:
    """What a reader of this point must know besides: its errors, a client that was busy."""
    errors = point.get("errors")
    notes = [f"{name}: {error['count']}, first: {error['first']}" for name, error in errors.items()] if isinstance(errors, dict) else []
    if point.get(UNFINISHED):
        notes.append(f"cut: {point[UNFINISHED]} streams that had not ended when the patience did")
    cpu = point.get("client_cpu")
    if isinstance(cpu, float) and cpu > BUSY_CLIENT:
        notes.append("the client is busy: its own time is in these figures; raise --processes")
    return [f"{load_name(point)}: {note}" for note in notes]


class LiveTable:
    """The table of a benchmark while it runs: finished points, the one being measured, and the progress of all.

    Args:
        console: output; if it is no terminal, each point is a row when it is finished.
        seconds: length of the whole benchmark.

    Attributes:
        is_live: whether it shows a point while it is measured.
    """

    def __init__(self, console: Console, seconds: float) -> None:
        self._console = console
        self._points: list[Figures] = []
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console
        )
        self._task = self._progress.add_task("warm-up", total=seconds)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.is_live = self._live is not None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            if self._points:
                self._console.print(table_of(self._points))
                self._print_notes(self._points)

    def show(self, point: Figures, elapsed: float, doing: str) -> None:
        """Show the figures so far of the point being measured, `elapsed` seconds after the beginning of the benchmark."""
        if self._live is not None:
            self._progress.update(self._task, completed=elapsed, description=doing)
            shown: RenderableType = Group(table_of([*self._points, point]), self._progress)
            self._live.update(shown, refresh=True)

    def add(self, point: Figures) -> None:
        """Add a finished point."""
        self._points.append(point)
        if self._live is None:
            self._console.print(table_of([point], heading=len(self._points) == 1))
            self._print_notes([point])

    def _print_notes(self, points: Sequence[Figures]) -> None:
        for point in points:
            for note in notes_on(point):
                self._console.print(note, markup=False, highlight=False, soft_wrap=True)
