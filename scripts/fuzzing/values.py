"""Hostile values: bytes, texts, JSON and numbers that no honest client sends, and some that one does."""

from __future__ import annotations

import json
import math
import random
import struct
from math import prod
from typing import Any

TEXTS = (
    "",
    " ",
    "\0",
    "Hello.",
    "a" * 5000,
    "ü" * 4001,
    "\N{GRINNING FACE}" * 40,
    "<|im_start|>assistant\n",
    "../../etc/passwd",
    "%s%n",
    "x" * 100_000,
)
SIZES = {"FP32": 4, "INT32": 4, "INT16": 2}  # bytes of a value
ODD_SHAPE_SHARE = 0.02  # few, because Triton refuses these by itself, before any model
NAMES = ("vivian", "ryan", "english", "auto", "nobody", "voices/x", "talker/" + "0" * 32)
NUMBERS = (0, 1, -1, 64, 65, 2**31 - 1, -(2**31), 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320)
FIELDS = (
    "temperature", "top_k", "top_p", "do_sample", "repetition_penalty", "seed", "max_frames", "subtalker_dosample", "subtalker_top_k",
    "chunk_frames", "chunk_policy", "audio_format", "non_streaming_mode", "speed", "__class__",
)  # fmt: skip


def some_bytes(rng: random.Random) -> bytes:
    """A value of a BYTES input."""
    choice = rng.randrange(6)
    if choice == 0:
        return rng.randbytes(rng.choice((0, 1, 3, 70, 2000)))
    if choice == 1:
        return rng.choice(TEXTS).encode()
    if choice == 2:
        return rng.choice(NAMES).encode()
    if choice == 3:
        return some_json(rng).encode("utf-8", "surrogatepass")
    text = bytearray(rng.choice(TEXTS)[:200].encode())
    for _ in range(rng.randrange(4)):
        text.insert(rng.randrange(len(text) + 1), rng.randrange(256))
    return bytes(text)


def some_json(rng: random.Random) -> str:
    """JSON for sampling_parameters: known names with any value, or no JSON at all."""
    choice = rng.randrange(8)
    if choice == 0:
        return rng.choice(("", "{", "[]", "null", "{}{}", '{"a": NaN}', "[" * 3000, '{"a":' * 300, '"' + "\\u0000" * 9 + '"'))
    values = {rng.choice(FIELDS): some_value(rng) for _ in range(rng.randrange(5))}
    return json.dumps(values | {"max_frames": rng.randrange(1, 8)} if choice < 5 else values)


def some_value(rng: random.Random, depth: int = 3) -> Any:
    """Any JSON value; lists and objects no deeper than `depth`."""
    choice = rng.randrange(8 if depth else 5)
    if choice == 0:
        return rng.choice((None, True, False))
    if choice <= 2:
        return rng.choice(NUMBERS)
    if choice == 3:
        return rng.choice(TEXTS)[:300]
    if choice == 4:
        return rng.choice(NAMES)
    if choice <= 6:
        return [some_value(rng, depth - 1) for _ in range(rng.choice((0, 1, 3, 65)))]
    return {rng.choice(FIELDS): some_value(rng, depth - 1) for _ in range(3)}


def some_array(rng: random.Random, datatype: str, dims: tuple[int, ...]) -> tuple[list[int], bytes]:
    """Shape and content of an input that has `dims`; mostly one fits the other."""
    shape = [size if size > 0 else rng.choice((0, 1, 2, 16, 500, 30_000)) for size in dims]
    if len(shape) == 2:
        shape = [rng.choice((0, 1, 8, 64, 65, 6000)), rng.choice((16, 16, 16, 1, 100))]
    length = prod(shape)
    if datatype == "FP32":
        values = rng.choice(([math.nan], [math.inf], [0.0], [1e38], [0.1, -0.1], [-1.0, 1.0], [3.0]))
        content = struct.pack(f"<{len(values)}f", *values) * (length // len(values) + 1)
    elif datatype == "INT32":
        content = struct.pack("<i", rng.choice((0, 1, -1, 8000, 16_000, 24_000, 192_000, 2**31 - 1, -(2**31)))) * length
    elif datatype == "INT16" and rng.random() < 0.5:
        content = bytes(2 * length)
    else:
        content = rng.randbytes(length * SIZES.get(datatype, 1))
    if rng.random() < ODD_SHAPE_SHARE:
        shape = rng.choice(([*shape, 1], [length + 1], [-1], [], [0]))
    return shape, content[: length * SIZES.get(datatype, 1)]
