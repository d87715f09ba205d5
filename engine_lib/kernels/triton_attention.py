"""The Triton kernels as an attention backend (engine_lib.layers.attention.AttentionBackend)."""

from __future__ import annotations

import torch

from engine_lib.kernels.paged_attention import PagedCache, decode_attention
from engine_lib.kernels.prefill_attention import prefill_attention


class TritonAttention:
    """Paged decode and prefill attention in Triton."""

    name = "triton"
    can_be_captured = True

    def decode(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, block_tables: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """As AttentionBackend.decode."""
        return decode_attention(q.contiguous(), PagedCache(k_cache, v_cache, block_tables), lengths)

    def prefill(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_tables: torch.Tensor,
        lengths: torch.Tensor,
        query_starts: torch.Tensor,
    ) -> torch.Tensor:
        """As AttentionBackend.prefill; rows of `q` after the last sequence are padding, and so is what comes back for them."""
        return prefill_attention(q.contiguous(), PagedCache(k_cache, v_cache, block_tables), lengths, query_starts)
