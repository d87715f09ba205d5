"""Writes to a paged KV cache [blocks, block_size, kv_heads, head_dim]; rows count through blocks."""

from __future__ import annotations

import torch


def store_kv(k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, cache_rows: torch.Tensor) -> None:
    """Write k, v [rows, kv_heads, head_dim] to rows `cache_rows` [rows] int64 (block * block_size + offset) of the caches."""
    k_cache.flatten(0, 1).index_copy_(0, cache_rows, k)
    v_cache.flatten(0, 1).index_copy_(0, cache_rows, v)
