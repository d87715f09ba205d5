"""SamplingParams: how the codes of one request are sampled. Names and defaults are those of qwen-tts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

import numpy as np

from engine_lib.errors import InvalidRequestError, nearest

MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1  # of top_k and max_frames
ANY_SEED = -1  # what many other programs mean by no seed


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling of codebook 0 by the talker, and of codebooks 1..15 by the code predictor (`subtalker_*`).

    Attributes:
        temperature: logits are divided by it; > 0, or 0 if do_sample is False, which does not use it.
        top_k: keep the k likeliest ids; 0 keeps all.
        top_p: keep the smallest set of ids with at least this total probability; in (0, 1], or 0 if do_sample is False.
        repetition_penalty: makes codebook-0 ids that this request has used less likely; > 0, 1 is off.
        do_sample: sample; False takes the likeliest id.
        seed: the same seed gives the same random numbers in any batch; None, or -1 in a request: a fresh one.
        max_frames: frames after which the request ends with finish reason `length`; None: a limit from the length of the text.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.05
    do_sample: bool = True
    subtalker_temperature: float = 0.9
    subtalker_top_k: int = 50
    subtalker_top_p: float = 1.0
    subtalker_dosample: bool = True
    seed: int | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        for name, switch in (("temperature", "do_sample"), ("subtalker_temperature", "subtalker_dosample"), ("repetition_penalty", "")):
            value = getattr(self, name)
            if not (math.isfinite(value) and 1e-3 <= value <= 1e3) and not self._is_off(value, switch):
                raise InvalidRequestError(name, f"{value} is not allowed; give a number from 0.001 to 1000{_greedy(switch)}")
        for name, switch in (("top_p", "do_sample"), ("subtalker_top_p", "subtalker_dosample")):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0 and not self._is_off(value, switch):
                raise InvalidRequestError(name, f"{value} is not allowed; give a number above 0 and up to 1{_greedy(switch)}")
        for name in ("top_k", "subtalker_top_k"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_COUNT:
                raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a whole number from 0 (off) to {MAX_COUNT}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError(
                "seed", f"{self.seed!r:.100} is not allowed; give a whole number from 0 to {MAX_SEED}, or {ANY_SEED} for any"
            )
        if self.max_frames is not None and not 1 <= self.max_frames <= MAX_COUNT:
            raise InvalidRequestError("max_frames", f"{self.max_frames!r:.100} is not allowed; give a whole number from 1 to {MAX_COUNT}")

    def _is_off(self, value: float, switch: str) -> bool:
        """Whether `value` is 0 beside a do_sample that is False; clients write both for the likeliest id."""
        return bool(switch) and value == 0 and not getattr(self, switch)

    def updated(self, values: Mapping[str, Any]) -> SamplingParams:
        """A copy with `values` (name to number, bool or None); None keeps the present value, and a seed of -1 is None.

        Raises:
            InvalidRequestError: an unknown name, or a value of the wrong type or outside its range.
        """
        types = _field_types()
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if name not in types:
                raise InvalidRequestError(name, f"unknown sampling parameter; allowed: {', '.join(types)}{nearest(name, types)}")
            if value is None:
                continue
            changes[name] = _converted(name, types[name], value)
        if changes.get("seed") == ANY_SEED:
            changes["seed"] = None
        return replace(self, **changes) if changes else self


def _greedy(switch: str) -> str:
    return f", or set {switch} to false for the likeliest code" if switch else ""


@cache  # because evaluating the annotations takes longer than the rest of a request's parsing
def _field_types() -> dict[str, Any]:
    return get_type_hints(SamplingParams)


def _converted(name: str, kind: Any, value: Any) -> Any:
    """Accepts an int for a float, and a whole float for an int, because JSON does not tell them apart; refuses all else.

    A numpy scalar counts as the Python value it holds.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give true or false")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a number")
    if kind is float:
        try:
            return float(value)
        except OverflowError:
            raise InvalidRequestError(name, "the number is too large") from None
    if isinstance(value, float) and not value.is_integer():
        raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a whole number")
    return int(value)
