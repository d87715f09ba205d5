"""The oracle computes what the official package does: its masks, made faster here, are the same."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch

import oracle


def masking(*, as_shipped: bool) -> ModuleType:
    """transformers' module of masks, as the oracle uses it or a second copy as it is shipped."""
    oracle.import_official()
    from transformers import masking_utils

    if not as_shipped:
        return masking_utils
    spec = importlib.util.find_spec("transformers.masking_utils")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.mark.parametrize("window", [None, 3], ids=["causal", "sliding window"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("first", "rows"), [(0, 6), (6, 1), (4, 3)])
def test_its_masks_are_those_of_transformers(window: int | None, padded: bool, first: int, rows: int) -> None:
    kv_length = first + rows
    made = []
    for module in (masking(as_shipped=True), masking(as_shipped=False)):
        function = module.causal_mask_function if window is None else module.sliding_window_causal_mask_function(window)
        arguments: dict[str, Any] = {"cache_position": torch.arange(first, kv_length), "kv_length": kv_length, "mask_function": function}
        if padded:
            arguments["attention_mask"] = torch.arange(kv_length) >= torch.tensor([[0], [2]])
        made.append(module.eager_mask(batch_size=2, **arguments))
    assert made[0].shape == made[1].shape == (2, 1, rows, kv_length)
    assert torch.equal(made[0], made[1])
