"""Attention over a paged KV cache: the interface, and the torch backend for CPU and reference.

Caches are [blocks, block_size, kv_heads, head_dim]; row r of a sequence lives in block block_table[r // block_size] at
r % block_size. Backends read lengths and block tables from tensors, so that decode can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class AttentionBackend(Protocol):
    """Causal attention with grouped heads, scaled by head_dim ** -0.5.

    Attributes:
        name: as in the option `attention_backend`.
        can_be_captured: True if neither call reads a device value on the host, so that a CUDA graph can hold both.
    """

    name: str
    can_be_captured: bool

    def decode(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, block_tables: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Attend from one query row of each sequence.

        Args:
            q: [batch, heads, head_dim].
            k_cache, v_cache: [blocks, block_size, kv_heads, head_dim].
            block_tables: [batch, width] int32.
            lengths: [batch] int32, rows of each sequence in the cache, the query's own row included.

        Returns:
            [batch, heads, head_dim].
        """
        ...

    def prefill(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_tables: torch.Tensor,
        lengths: torch.Tensor,
        query_starts: torch.Tensor,
    ) -> torch.Tensor:
        """Attend from several query rows of each sequence, packed; they are the last rows of their sequence.

        Args:
            q: [rows, heads, head_dim].
            query_starts: [batch + 1] int32, first row of each sequence in `q`, and the number of rows.
            others: as in `decode`.

        Returns:
            [rows, heads, head_dim].
        """
        ...


class TorchAttention:
    """Gathers the cached rows and calls scaled_dot_product_attention."""

    name = "torch"
    can_be_captured = False  # prefill loops over the sequences on the host

    def decode(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, block_tables: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        k, v = _gathered(k_cache, block_tables), _gathered(v_cache, block_tables)  # [batch, kv_heads, rows, head_dim]
        mask = torch.arange(k.shape[2], device=q.device) < lengths[:, None]
        out = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask[:, None, None], enable_gqa=True)
        return out[:, :, 0]

    def prefill(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_tables: torch.Tensor,
        lengths: torch.Tensor,
        query_starts: torch.Tensor,
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        starts, row_counts = query_starts.tolist(), lengths.tolist()
        for sequence, (start, stop, length) in enumerate(zip(starts, starts[1:], row_counts, strict=False)):
            table = block_tables[sequence : sequence + 1]
            k, v = _gathered(k_cache, table)[:, :, :length], _gathered(v_cache, table)[:, :, :length]
            rows = torch.arange(length - (stop - start), length, device=q.device)
            mask = torch.arange(length, device=q.device) <= rows[:, None]
            query = q[start:stop].transpose(0, 1)[None]
            out[start:stop] = F.scaled_dot_product_attention(query, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
        return out


def _gathered(cache: torch.Tensor, block_tables: torch.Tensor) -> torch.Tensor:
    """[batch, kv_heads, width * block_size, head_dim]."""
    return cache[block_tables].flatten(1, 2).transpose(1, 2)
