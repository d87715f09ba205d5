"""The line of the log that says what a loaded talker is made of, where its memory went, and what fits."""

from __future__ import annotations

from engine_lib.talker.device.worker import TalkerRunner

GIB = 2**30


def load_summary(runner: TalkerRunner) -> str:
    """Device, dtype, kernels, weights, graphs, KV cache, and the streams that fit if all are equally long."""
    config, model, cache = runner.config, runner.model, runner.kv_cache
    blocks = runner.num_blocks - 1
    rows = min(blocks // config.max_num_seqs * config.kv_block_size, config.max_model_len)
    graphs = "no graphs"
    if runner.graphs is not None:
        graphs = f"{len(runner.graphs)} graphs, {runner.graphs.nbytes / GIB:.2f} GiB, captured in {runner.graphs.capture_seconds:.1f} s"
    return (
        f"talker on {runner.ranks.label}{runner.device} in {str(runner.dtype).removeprefix('torch.')}, kernels: {runner.forward.name}; "
        f"weights {model.nbytes / GIB:.2f} GiB, loaded in {runner.load_seconds:.1f} s; {graphs}; "
        f"KV cache {blocks} blocks of {config.kv_block_size} rows, {cache.nbytes / GIB:.2f} GiB: "
        f"{config.max_num_seqs} streams of {rows * runner.frame_seconds:.0f} s each, prompt included"
    )
