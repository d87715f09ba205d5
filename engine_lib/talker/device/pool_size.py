"""The number of KV blocks: as the options say, or as many as fit on the device beside the weights."""

from __future__ import annotations

import torch

from engine_lib.checkpoint_config import DecoderShape
from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError

GRAPH_BYTES = 2 * 2**30  # left for the memory of captured graphs and of prefill


def num_kv_blocks(config: EngineConfig, shape: DecoderShape, *, dtype: torch.dtype, device: torch.device) -> int:
    """Blocks of the KV cache of a talker of `shape`, NULL_BLOCK included. Its weights must already be on `device`.

    Raises:
        ConfigError: the blocks cannot hold one request of `max_model_len`.
    """
    longest = -(-config.max_model_len // config.kv_block_size)
    if config.num_kv_blocks:
        if config.num_kv_blocks < longest:
            raise ConfigError(
                f"num_kv_blocks: {config.num_kv_blocks} blocks of {config.kv_block_size} rows cannot hold one request of "
                f"max_model_len {config.max_model_len}; give at least {longest} or lower max_model_len"
            )
        return config.num_kv_blocks + 1
    wanted = config.max_num_seqs * longest + 1
    return min(wanted, _blocks_that_fit(config, shape, longest, dtype, device)) if device.type == "cuda" else wanted


def _blocks_that_fit(config: EngineConfig, shape: DecoderShape, longest: int, dtype: torch.dtype, device: torch.device) -> int:
    """Blocks that `gpu_memory_utilization` leaves room for beside the weights; one request needs up to `longest`."""
    row_bytes = shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim * dtype.itemsize
    free, total = torch.cuda.mem_get_info(device)
    # Memory of other processes does not count: several may load at the same time, each with its own share.
    own = torch.cuda.memory_reserved(device)
    room = min(config.gpu_memory_utilization * total - own, free) - GRAPH_BYTES
    blocks = int(room // (row_bytes * config.kv_block_size))
    if blocks <= longest:
        raise ConfigError(
            f"gpu_memory_utilization: {config.gpu_memory_utilization} of {total / 2**30:.0f} GiB leaves {room / 2**30:.1f} GiB for the "
            f"KV cache, too little for one request of max_model_len {config.max_model_len}; raise it or lower max_model_len"
        )
    return blocks
