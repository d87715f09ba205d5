"""Shared by the talker's attention kernels: the paged cache, and the norm and rotation of q and k.

A cache may have more than 2^31 elements, so the kernels compute with block numbers in int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine_lib.kernels.launch import check, check_rows


@dataclass(frozen=True)
class PagedCache:
    """The paged KV cache of one layer.

    Attributes:
        k, v: [blocks, block_size, kv_heads, head_dim], contiguous; any block_size, any even head_dim.
        block_tables: [sequences, width] int32.
    """

    k: torch.Tensor
    v: torch.Tensor
    block_tables: torch.Tensor

    def check(self) -> None:
        """Refuse a layout that the kernels cannot read."""
        check(self.k.shape == self.v.shape, f"v: the shape is {tuple(self.v.shape)}; that of k, {tuple(self.k.shape)}, is expected")
        check(self.k.is_contiguous() and self.v.is_contiguous(), "k, v: the caches of a layer must be contiguous")
        check(self.k.shape[3] % 2 == 0, f"k: a head_dim of {self.k.shape[3]} has no two halves to rotate")
        check(self.block_tables.dtype == torch.int32, f"block_tables: {self.block_tables.dtype}; int32 is expected")
        check(self.block_tables.stride(1) == 1, f"block_tables: columns have stride {self.block_tables.stride(1)}; it must be 1")


@dataclass(frozen=True)
class HeadRotation:
    """Turns the packed product into q and k: norm weights [head_dim], eps, and tables [positions, head_dim / 2]."""

    q_norm: torch.Tensor
    k_norm: torch.Tensor
    eps: float
    cos: torch.Tensor
    sin: torch.Tensor

    def check(self, head_dim: int) -> None:
        """Refuse a layout that the kernels cannot read."""
        check_rows("q_norm", self.q_norm, head_dim)
        check_rows("k_norm", self.k_norm, head_dim)
        for name, table in (("cos", self.cos), ("sin", self.sin)):
            check_rows(name, table, len(self.cos), head_dim // 2)
            check(table.is_contiguous(), f"{name}: strides {table.stride()} are not those of a contiguous table")
