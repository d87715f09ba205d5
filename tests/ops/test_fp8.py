"""FP8 weights: how near they are, that nothing is lost behind the rounding, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from talker.speaking import checkpoint, make_engine

from engine_lib.checkpoint import WHOLE, Checkpoint, Shard
from engine_lib.errors import CheckpointError
from engine_lib.ops.fp8 import SMALLEST_SCALE, Fp8Weight, WeightFormat, linear
from engine_lib.talker.device.load_summary import load_summary
from engine_lib.talker.device.model import TalkerModel
from make_checkpoint import make_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def weight() -> torch.Tensor:
    """Return random channels of very different sizes, down to subnormal ones, from a fresh seed; one is zero."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    sizes = torch.exp2(torch.randint(-146, 120, (200, 1)).double())
    channels = (torch.randn(200, 96, dtype=torch.float64) * sizes * torch.exp2(-torch.randint(0, 20, (200, 96)))).float()
    channels[7] = 0
    return channels


def test_the_error_is_half_a_step_of_the_codes_at_most(weight: torch.Tensor) -> None:
    rounded = Fp8Weight.of(weight)
    error = (rounded.dense(torch.float64) - weight.double()).abs()
    half_steps = torch.maximum(weight.double().abs() * 2**-4, rounded.scales.double()[:, None] * 2**-10)
    assert (error <= half_steps).all()
    assert (rounded.dense(torch.float32)[7] == 0).all()


def test_scales_are_powers_of_two_that_use_the_range_of_the_codes(weight: torch.Tensor) -> None:
    rounded = Fp8Weight.of(weight)
    mantissas, exponents = torch.frexp(rounded.scales)
    assert (mantissas == 0.5).all()
    largest = rounded.codes.float().abs().amax(1)
    has_own_scale = (weight.abs().amax(1) > 0) & (exponents - 1 > SMALLEST_SCALE)
    assert has_own_scale.sum() > 100
    assert (largest[has_own_scale] >= 224).all()
    assert (largest <= 448).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rounded_weights_are_exact_in_any_dtype_and_rounding_them_again_changes_nothing(weight: torch.Tensor, dtype: torch.dtype) -> None:
    rounded = Fp8Weight.of(weight)
    dense = rounded.dense(dtype)
    assert torch.equal(dense.double(), rounded.dense(torch.float64))
    assert torch.equal(Fp8Weight.of(dense).dense(dtype), dense)
    part = dense[:, 32:64]  # as a shard's columns: their own scales may be smaller
    assert torch.equal(Fp8Weight.of(part).dense(dtype), part)


def test_a_product_in_torch_takes_either_form(weight: torch.Tensor) -> None:
    rounded = Fp8Weight.of(weight.clamp(-1e3, 1e3))
    x = torch.randn(3, 96)
    assert torch.equal(linear(x, rounded), linear(x, rounded.dense(torch.float32)))


def model(path: Path, weight_format: WeightFormat, shard: Shard = WHOLE, dtype: torch.dtype = torch.float32) -> TalkerModel:
    return TalkerModel(checkpoint(path), dtype=dtype, device=CPU, max_positions=16, shard=shard, weight_format=weight_format)


def test_only_products_of_layers_are_rounded_and_both_forms_are_one_weight(tiny_custom_voice_1b7: Path) -> None:
    kept, rounded, packed = (model(tiny_custom_voice_1b7, weight_format) for weight_format in WeightFormat)
    models = (kept, rounded, packed)
    for stacks in ([m.transformer for m in models], [m.code_predictor.transformer for m in models]):
        for before, after, codes in zip(*(stack.layers for stack in stacks), strict=True):
            for field in vars(before):
                was, now, held = (getattr(layer, field) for layer in (before, after, codes))
                if field in ("qkv", "output", "gate_up", "down"):
                    assert torch.equal(now, held.dense(torch.float32))
                    assert torch.equal(now, Fp8Weight.of(was).dense(torch.float32))
                    assert not torch.equal(now, was)
                else:
                    assert torch.equal(now, was)
                    assert torch.equal(held, was)
    assert torch.equal(kept.head, packed.head)
    assert torch.equal(kept.code_predictor.heads, packed.code_predictor.heads)
    assert packed.transformer.nbytes < 0.35 * kept.transformer.nbytes == 0.35 * rounded.transformer.nbytes


def test_shards_are_parts_of_the_whole_in_any_dtype(tiny_custom_voice_1b7: Path) -> None:
    whole = model(tiny_custom_voice_1b7, WeightFormat.FP8_ROUNDED).transformer.layers
    shards = [model(tiny_custom_voice_1b7, WeightFormat.FP8, Shard(rank, 2), dtype=torch.bfloat16).transformer.layers for rank in range(2)]
    for layer, *parts in zip(whole, *shards, strict=True):
        for field in ("output", "down"):
            joined = torch.cat([getattr(part, field).dense(torch.float32) for part in parts], dim=1)
            assert torch.equal(joined, getattr(layer, field))


def test_the_log_names_the_form_of_the_weights(tiny_custom_voice: Path) -> None:
    assert "GiB, layers rounded to fp8, loaded" in load_summary(make_engine(tiny_custom_voice, talker_weights="fp8").worker)
    assert "GiB, loaded" in load_summary(make_engine(tiny_custom_voice).worker)


def test_weights_that_have_no_codes_are_refused_by_name(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "checkpoint")
    name = "talker.code_predictor.model.layers.0.mlp.down_proj.weight"
    weights = load_file(path / "model.safetensors")
    weights[name] = weights[name].float()
    weights[name][1, 2] = 3.4e38
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"weight {name} has values that are too large for FP8; give talker_weights=checkpoint"):
        TalkerModel(Checkpoint(path), dtype=torch.float32, device=CPU, max_positions=16, weight_format=WeightFormat.FP8_ROUNDED)
