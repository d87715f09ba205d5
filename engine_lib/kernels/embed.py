"""The talker's next input rows: 16 code embeddings and one text embedding of each slot, summed."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Protocol

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, plus, start_next, wait_for_previous

_BLOCK = 256


class FrameInputs(Protocol):
    """The state that gives the next input row of each slot (engine_lib.talker.device.state.SlotState)."""

    frames: torch.Tensor
    codes: torch.Tensor
    text_ids: torch.Tensor


def embed_frames(
    slots: torch.Tensor,
    state: FrameInputs,
    code_table: torch.Tensor,
    code_offsets: torch.Tensor,
    text_table: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum of the embeddings of the latest codes and of the text that joins them.

    Args:
        slots: [batch] int64, the slot of each row.
        state: `codes` [slots, groups] and `text_ids` [slots, columns] int64, negative for none. The text of
            the next row is in column `frames`, kept within the columns.
        code_table: [codes of all groups, hidden], contiguous; group g starts at row `code_offsets[g]` (int64).
        text_table: [text ids, hidden], contiguous.
        out: [batch, hidden], where to write; None allocates.

    Returns:
        `out`. The twin is `embed_frames_torch`.
    """
    batch, groups, hidden = len(slots), state.codes.shape[1], code_table.shape[1]
    check(code_table.is_contiguous() and text_table.is_contiguous(), "code_table, text_table: the tables must be contiguous")
    check(text_table.shape[1] == hidden, f"text_table: rows of {text_table.shape[1]}; those of code_table are {hidden} wide")
    check(code_offsets.shape == (groups,), f"code_offsets: the shape is {tuple(code_offsets.shape)}; ({groups},) is expected")
    check_rows("slots", slots, batch)
    check_rows("state.codes", state.codes, len(state.codes), groups)
    check_rows("state.text_ids", state.text_ids, len(state.codes), state.text_ids.shape[1])
    out = code_table.new_empty(batch, hidden) if out is None else out
    check_rows("out", out, batch, hidden)
    _embed_kernel[(batch, triton.cdiv(hidden, _BLOCK))](
        slots,
        state.frames,
        state.codes,
        state.text_ids,
        code_table,
        code_offsets,
        text_table,
        out,
        state.codes.stride(0),
        state.text_ids.stride(0),
        state.text_ids.shape[1],
        out.stride(0),
        GROUPS=groups,
        GROUPS_PADDED=triton.next_power_of_2(groups),
        HIDDEN=hidden,
        BLOCK=_BLOCK,
        num_warps=4,
        **launch_options(code_table.device),
    )
    return out


def embed_frames_torch(
    slots: torch.Tensor, state: FrameInputs, code_table: torch.Tensor, code_offsets: torch.Tensor, text_table: torch.Tensor
) -> torch.Tensor:
    """Twin of `embed_frames`; engine_lib.talker.device.model.TalkerModel.embed gives the same, with a row of zeros for no id."""

    def rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return table[ids.clamp(min=0)] * (ids >= 0)[..., None]

    columns = state.frames[slots].clamp(max=state.text_ids.shape[1] - 1)
    codes, text_ids = state.codes[slots], state.text_ids[slots, columns]
    return rows(code_table, torch.where(codes < 0, -1, codes + code_offsets)).sum(1) + rows(text_table, text_ids)


@triton.jit
def _embed_kernel(
    slots,
    frames,
    codes,
    text_ids,
    code_table,
    code_offsets,
    text_table,
    out,
    codes_stride,
    text_stride,
    text_columns,
    out_stride,
    GROUPS: tl.constexpr,
    GROUPS_PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < HIDDEN
    dtype = out.dtype.element_ty
    slot = tl.load(slots + row)
    group = tl.arange(0, GROUPS_PADDED)
    code = tl.load(codes + slot * codes_stride + group, mask=group < GROUPS, other=-1)
    table_row = code + tl.load(code_offsets + group, mask=group < GROUPS, other=0)
    mask = (code >= 0)[:, None] & real[None, :]
    lines = tl.load(code_table + table_row[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
    total = tl.sum(lines.to(tl.float32), axis=0).to(dtype)
    text_column = tl.minimum(tl.load(frames + slot), text_columns - 1)
    text_id = tl.load(text_ids + slot * text_stride + text_column)
    line = tl.load(text_table + text_id * HIDDEN + column, mask=real & (text_id >= 0), other=0.0)
    tl.store(out + row * out_stride + column, plus(total, line, dtype), mask=real)
