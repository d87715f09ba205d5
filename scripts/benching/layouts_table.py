"""Tables of bench_layouts.py: loads on servers, frames of tensor parallelism, each beside one card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benching.layouts import ONE
from qwen3_tts_client.load.figures import THROUGHPUT
from qwen3_tts_client.load.table import COLUMNS, DONE_COLUMN, Column, number

A_CARD, TIMES_ONE, CARD_GPU = "audio_seconds_per_second_a_card", "times_one_card", "gpu_utilization"

Figures = Mapping[str, object]


def _gpu(point: Figures) -> str:
    shares = point.get(CARD_GPU)
    return " ".join("-" if share is None else f"{share:.0f}" for share in shares) if isinstance(shares, list) else "-"


LOAD_COLUMNS = (
    Column("\nlayout", 7, lambda point: str(point["layout"])),
    Column("\ncards", 5, lambda point: str(point["cards"])),
    *(column for column in COLUMNS if column is not DONE_COLUMN),
    Column("audio-s/s\na card", 9, lambda point: number(point, A_CARD)),
    Column("x one\ncard", 5, lambda point: number(point, TIMES_ONE, 2)),
    Column("GPU\n%", 3, _gpu),
)
FRAME_HEADING = f"{'layout':>7} {'cards':>5} {'batch':>6} {'ms a frame':>11} {'one card / it':>14} {'first codes ms':>15}"


def beside_one(point: Figures, points: Sequence[Figures]) -> dict[str, object]:
    """Audio a card of a load, and its ratio to one card with as many streams a server, if that is among `points` or the load itself."""
    audio = float(str(point[THROUGHPUT]))
    figures: dict[str, object] = {A_CARD: audio / int(str(point["cards"]))}
    for one in (*points, point):
        if one["layout"] == ONE and one.get("streams_a_server") == point["streams_a_server"] and float(str(one[THROUGHPUT])) > 0:
            figures[TIMES_ONE] = audio / float(str(one[THROUGHPUT]))
    return figures


def frame_lines(points: Sequence[Figures]) -> list[str]:
    """Lines of the table of frames; none without one."""
    one = {point["batch"]: float(str(point["ms"])) for point in points if point["layout"] == ONE and "batch" in point}
    prompts = {point["layout"]: point for point in points if "first_codes_ms" in point}
    lines = []
    for point in points:
        if "batch" in point:
            milliseconds, of_one = float(str(point["ms"])), one.get(point["batch"])
            first = number(prompts.get(point["layout"], {}), "first_codes_ms", 2) if point["batch"] == 1 else ""
            ratio = f"{of_one / milliseconds:.2f}" if of_one else "-"
            lines.append(f"{point['layout']:>7} {point['cards']:>5} {point['batch']:>6} {milliseconds:>11.2f} {ratio:>14} {first:>15}")
    return [FRAME_HEADING, *lines] if lines else []
