"""The log line of a loaded talker: its parts, their memory, and the streams that fit."""

from __future__ import annotations

from engine_lib.ops.fp8 import WeightFormat
from engine_lib.talker.device.worker import TalkerWorker

GIB = 2**30
FORMATS = {WeightFormat.CHECKPOINT: "", WeightFormat.FP8: ", layers in fp8", WeightFormat.FP8_ROUNDED: ", layers rounded to fp8"}


def load_summary(worker: TalkerWorker) -> str:
    """Device, dtype, kernels, weights, graphs, KV cache, and the streams that fit if all are equally long."""
    config, model, cache = worker.config, worker.model, worker.kv_cache
    blocks = worker.num_blocks - 1
    rows = min(blocks // config.max_num_seqs * config.kv_block_size, config.max_model_len)
    graphs = "no graphs"
    if worker.graphs is not None:
        graphs = f"{len(worker.graphs)} graphs, {worker.graphs.nbytes / GIB:.2f} GiB, captured in {worker.graphs.capture_seconds:.1f} s"
    return (
        f"talker on {worker.ranks.label}{worker.device} in {str(worker.dtype).removeprefix('torch.')}, kernels: {worker.forward.name}; "
        f"weights {model.nbytes / GIB:.2f} GiB{FORMATS[model.weight_format]}, loaded in {worker.load_seconds:.1f} s; {graphs}; "
        f"KV cache {blocks} blocks of {config.kv_block_size} rows, {cache.nbytes / GIB:.2f} GiB: "
        f"{config.max_num_seqs} streams of {rows * worker.frame_seconds:.0f} s each, prompt included"
    )
