"""Messages between processes arrive as they were sent, and nothing else arrives."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from engine_lib.process.wire import Message, Wire


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...]
    array: npt.NDArray[np.float32] | None = None


class Question(Message, frozen=True):
    text: str
    inner: Inner


class Answer(Message, frozen=True):
    codes: npt.NDArray[np.int16]


WIRE: Wire[Question | Answer] = Wire(Question | Answer)


def test_dataclasses_arrays_and_none_come_out_as_they_went_in() -> None:
    array = np.arange(7, dtype=np.float32) / 3
    for inner in (Inner((1, 2**62)), Inner((), array)):
        copy = WIRE.unpack(WIRE.pack(Question("ä", inner)))
        assert isinstance(copy, Question)
        assert (copy.text, copy.inner.numbers) == ("ä", inner.numbers)
        np.testing.assert_equal(copy.inner.array, inner.array)


@pytest.mark.parametrize("shape", [(0, 16), (3, 16), (1,)])
def test_arrays_keep_shape_and_type_even_where_they_are_not_contiguous(shape: tuple[int, ...]) -> None:
    codes = np.arange(2 * int(np.prod(shape)), dtype=np.int16)[::2].reshape(shape)
    copy = WIRE.unpack(WIRE.pack(Answer(codes)))
    assert isinstance(copy, Answer)
    assert (copy.codes.dtype, copy.codes.shape) == (codes.dtype, codes.shape)
    np.testing.assert_array_equal(copy.codes, codes)
    copy.codes[...] = 1  # torch must be able to write to it


class Stranger(Message, frozen=True):
    text: str


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", WIRE.pack(Stranger("x"))], ids=["nothing", "pickle", "a stranger"])
def test_what_is_none_of_the_messages_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        WIRE.unpack(data)


def test_a_number_in_place_of_an_arrays_data_takes_no_memory() -> None:
    message = msgspec.msgpack.encode(["Answer", ["<i2", [0, 0], 2**40]])
    with pytest.raises(msgspec.ValidationError, match="not bytes"):
        WIRE.unpack(message)
