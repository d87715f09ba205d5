"""Sampling parameters: those of qwen-tts by name, and each value outside its range refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from engine_lib.errors import InvalidRequestError
from engine_lib.sampling import MAX_SEED, SamplingParams


def test_defaults_are_those_of_the_official_package():
    sampling = SamplingParams()
    for prefix, do_sample in (("", "do_sample"), ("subtalker_", "subtalker_dosample")):
        assert [getattr(sampling, prefix + name) for name in ("temperature", "top_k", "top_p")] == [0.9, 50, 1.0]
        assert getattr(sampling, do_sample) is True
    assert sampling.repetition_penalty == 1.05


def test_values_are_put_in_and_none_leaves_what_there_was():
    sampling = SamplingParams(top_k=7).updated({"temperature": 1, "top_k": None, "seed": 3.0, "do_sample": False, "max_frames": 2**31 - 1})
    assert sampling == SamplingParams(top_k=7, temperature=1.0, seed=3, do_sample=False, max_frames=2**31 - 1)
    assert type(sampling.temperature) is float
    assert type(sampling.seed) is int


@pytest.mark.parametrize("value", [0.001, 1000, 0.9])
@pytest.mark.parametrize("name", ["temperature", "subtalker_temperature", "repetition_penalty"])
def test_the_ends_of_a_range_are_allowed(name: str, value: float):
    assert getattr(SamplingParams().updated({name: value}), name) == value
    assert SamplingParams(top_p=1e-9, top_k=0, seed=MAX_SEED, max_frames=1)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("seed", [-1, -1.0])
def test_a_seed_of_minus_one_is_any_seed_as_in_other_programs(seed: float) -> None:
    assert SamplingParams(seed=7).updated({"seed": seed}).seed is None


REFUSED: list[tuple[tuple[str, ...], list[Any]]] = [
    (("temperature", "subtalker_temperature", "repetition_penalty"), [0, -1, 1001, NAN, INFINITE, 10**400]),
    (("top_p", "subtalker_top_p"), [0, -0.1, 1.01, NAN]),
    (("top_k", "subtalker_top_k"), [-1, 2**31, 1.5, NAN, INFINITE]),
    (("seed",), [-2, MAX_SEED + 1, 0.5, INFINITE]),
    (("max_frames",), [0, -1, 2**31, 1.5]),
    (("temperature", "top_k", "seed", "max_frames"), ["1", True, [1], {}]),
    (("do_sample", "subtalker_dosample"), [1, 0, "true", []]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for names, values in REFUSED for name in names for value in values])
def test_a_value_outside_its_range_is_refused_by_name(name: str, value: Any):
    with pytest.raises(InvalidRequestError) as error:
        SamplingParams().updated({name: value})
    assert error.value.field == name
    assert "give " in str(error.value) or "too large" in str(error.value)


@pytest.mark.parametrize("name", ["top_k", "subtalker_top_k", "max_frames"])
def test_a_count_that_is_too_large_is_told_the_largest(name: str):
    with pytest.raises(InvalidRequestError, match=f"{2**31} is not allowed; .* to {2**31 - 1}$"):
        SamplingParams().updated({name: 2**31})


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_a_zero_that_greedy_decoding_does_not_use_is_allowed_beside_it_alone(zero: float):
    for switch, names in (("do_sample", ("temperature", "top_p")), ("subtalker_dosample", ("subtalker_temperature", "subtalker_top_p"))):
        for name in names:
            greedy = SamplingParams().updated({name: zero, switch: False})
            assert getattr(greedy, name) == 0
            with pytest.raises(InvalidRequestError, match=f"^{name}: .* set {switch} to false for the likeliest code"):
                greedy.updated({switch: True})


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(InvalidRequestError, match="beams: unknown sampling parameter; allowed: temperature, top_k"):
        SamplingParams().updated({"beams": 4})
