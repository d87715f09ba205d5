"""Figures of other servers of this model, with hardware and source. For bench_server.py.

If a range was measured, the better end is listed. Published figures come from other machines and other texts: they are orders of
magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qwen3_tts_client.load.figures import P50, P95, THROUGHPUT

MEASURED = "measured by this project over its HTTP API, random weights"
PUBLISHED = "published by its authors"


@dataclass(frozen=True)
class Peer:
    """One figure of a peer, Qwen3-TTS 1.7B.

    Attributes:
        name: the peer.
        hardware, source: of the figure.
        streams, rate: the load: a closed loop of `streams` streams, or if that is 0, `rate` requests per second.
        figure: name of our figure to compare with.
        value: in the unit of our figure.
    """

    name: str
    hardware: str
    source: str
    streams: int
    rate: float
    figure: str
    value: float


NARI, SGLANG, VLLM = "nari-qwen3-tts", "sglang-omni", "vLLM-Omni"
PEERS = (
    # On the H100 of docs/performance.md, in the same hour as ours there.
    Peer(NARI, "H100", MEASURED, 1, 0, P50, 13.7),
    Peer(NARI, "H100", MEASURED, 1, 0, P95, 14.5),
    Peer(NARI, "H100", MEASURED, 1, 0, THROUGHPUT, 12.7),
    Peer(NARI, "H100", MEASURED, 16, 0, P50, 24.5),
    Peer(NARI, "H100", MEASURED, 16, 0, P95, 34.8),
    Peer(NARI, "H100", MEASURED, 16, 0, THROUGHPUT, 100.7),
    Peer(NARI, "H100", MEASURED, 64, 0, P50, 30.8),
    Peer(NARI, "H100", MEASURED, 64, 0, P95, 48.1),
    Peer(NARI, "H100", MEASURED, 64, 0, THROUGHPUT, 188.5),
    Peer(NARI, "H100", MEASURED, 0, 1, P95, 15.9),
    Peer(NARI, "H100", MEASURED, 0, 10, P95, 23.2),
    Peer(NARI, "H100", MEASURED, 0, 20, P95, 33.3),
    Peer(NARI, "H200", MEASURED, 1, 0, P50, 12.8),
    Peer(NARI, "H200", MEASURED, 16, 0, P50, 37),
    Peer(NARI, "H200", MEASURED, 16, 0, THROUGHPUT, 128),
    Peer(NARI, "H200", MEASURED, 64, 0, P50, 96),
    Peer(NARI, "H200", MEASURED, 64, 0, P95, 131),
    Peer(NARI, "H200", MEASURED, 64, 0, THROUGHPUT, 238),
    Peer(VLLM, "H100", PUBLISHED, 64, 0, THROUGHPUT, 112),
    Peer(NARI, "H100", PUBLISHED + " (first audible audio)", 0, 1, P95, 26.5),
    Peer(NARI, "H100", PUBLISHED + " (first audible audio)", 0, 10, P95, 34.1),
    Peer(NARI, "H100", PUBLISHED + " (first audible audio)", 0, 20, P95, 77.2),
    Peer(SGLANG, "H100", PUBLISHED, 0, 1, P50, 28.5),
    Peer(SGLANG, "H100", PUBLISHED, 0, 20, P50, 37),
)


def peers_of(size: object) -> tuple[Peer, ...]:
    """Peers to compare with a checkpoint of this `tts_model_size`; if it is None (unknown), all peers."""
    return PEERS if size in ("1b7", None) else ()


def comparisons(results: Sequence[Mapping[str, object]], peers: Sequence[Peer]) -> Iterator[str]:
    """Lines of a table: our figure, the peer's and their ratio, for each figure of a peer at a load that was measured."""
    lines = []
    for peer in peers:
        for point in results:
            ours = point.get(peer.figure)
            same_load = (point.get("streams"), point.get("rate")) == (peer.streams, peer.rate) and not point.get("paced")
            if same_load and isinstance(ours, float):
                load = f"{peer.streams} streams" if peer.streams else f"{peer.rate:g} /s"
                lines.append(
                    f"{load:>12} {peer.figure:<25} {ours:>8.1f} {peer.value:>8.1f} {ours / peer.value:>6.2f}  "
                    f"{peer.name}, {peer.hardware}, {peer.source}"
                )
    if lines:
        yield f"\n{'load':>12} {'figure':<25} {'ours':>8} {'peer':>8} {'ratio':>6}  peer (all of them 1.7B)"
        yield from lines
