"""Checks of a device before weights are loaded."""

from __future__ import annotations

import pytest
import torch

from engine_lib.devices import check_products
from engine_lib.errors import ConfigError

CPU = torch.device("cpu")


def test_products_that_come_out_whole_pass() -> None:
    check_products(CPU, torch.float32)


def test_a_product_with_a_part_left_unwritten_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.mm

    def partial(x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        whole(x[:-1], y, out=out[:-1])
        return out

    monkeypatch.setattr(torch, "mm", partial)
    with pytest.raises(ConfigError, match=r"device: on cpu .* give this process all of it .*CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"):
        check_products(CPU, torch.float32)
