"""Time of one kernel launch in a captured chain of launches. For bench_kernels.py and bench_conv.py."""

from __future__ import annotations

from collections.abc import Callable

import torch


def seconds_per_launch(launches: list[Callable[[], object]], repeats: int = 20) -> float:
    """Median seconds of one launch in a captured chain of `launches`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for one in launches[:2]:
            one()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in launches:
            one()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2] / len(launches) / 1e3
