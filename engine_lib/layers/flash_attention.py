"""The attention backend that calls flash-attn (Dao 2023), if it is installed and asked for.

`auto` does not choose it: our decode attention norms, rotates and stores in its own launch, and flash-attn needs another launch
for that. flash-attn 2.8 reads KV blocks of a multiple of 256 rows, half precision only, heads of up to 256 numbers. If no wheel of
it fits, scripts/build_flash_attn.sh builds the functions called here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine_lib.errors import ConfigError

PAGE_ROWS = 256
MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16)


def check_flash_attention(*, dtype: torch.dtype, block_size: int, head_dim: int) -> None:
    """Refuse a cache that flash-attn does not read.

    Raises:
        ConfigError: names the option to change.
    """
    if block_size % PAGE_ROWS:
        raise ConfigError(
            f"attention_backend: flash-attn reads KV blocks of a multiple of {PAGE_ROWS} rows and kv_block_size is {block_size}; "
            f"set kv_block_size to {PAGE_ROWS}, or use auto"
        )
    if dtype not in DTYPES:
        raise ConfigError(f"attention_backend: flash-attn computes in half precision, not in {dtype}; set dtype to bfloat16, or use auto")
    if head_dim > MAX_HEAD_DIM or head_dim % 8:
        raise ConfigError(
            f"attention_backend: flash-attn takes a head_dim that is a multiple of 8 and at most {MAX_HEAD_DIM}, "
            f"and this checkpoint's is {head_dim}; use auto"
        )


class FlashAttention:
    """See AttentionBackend. The choice of kernels depends on shapes alone, so a CUDA graph can hold both calls."""

    name = "flash-attn"
    can_be_captured = True

    def __init__(self) -> None:
        """
        Raises:
            ConfigError: flash-attn is not installed, or was built for another torch.
        """
        try:
            from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
        except ImportError as error:
            raise ConfigError(
                f"attention_backend: flash-attn does not load ({error}); install flash-attn, build it with "
                "scripts/build_flash_attn.sh, or use auto"
            ) from None
        self._decode, self._prefill = flash_attn_with_kvcache, flash_attn_varlen_func

    def decode(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, block_tables: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        out: torch.Tensor = self._decode(q[:, None], k_cache, v_cache, cache_seqlens=lengths, block_table=block_tables, causal=True)
        return out[:, 0]

    def prefill(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_tables: torch.Tensor,
        lengths: torch.Tensor,
        query_starts: torch.Tensor,
    ) -> torch.Tensor:
        # Bounds, because the lengths are on the device. With a bound of 1 it would take every query row for a sequence.
        out: torch.Tensor = self._prefill(
            q,
            k_cache,
            v_cache,
            cu_seqlens_q=query_starts,
            cu_seqlens_k=F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
            max_seqlen_q=max(len(q), 2),
            max_seqlen_k=block_tables.shape[1] * k_cache.shape[1],
            causal=True,
            block_table=block_tables,
        )
        return out
