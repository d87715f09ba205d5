"""Planner: turns a schedule into plans of numbers, in the order in which the device must get them.

Plans are made one by one, so that the host makes the next one while the device works on the last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from engine_lib.speech.alignment_file import MAX_TEXT_ROWS
from engine_lib.talker.device.plan import (
    BlockTablePlan,
    DecodePlan,
    ErasePlan,
    FirstFramesPlan,
    Plan,
    PrefillPlan,
    SlotPlan,
    SpeakerPlan,
    TextPlan,
)
from engine_lib.talker.device.prefill_layout import NULL_BLOCK, PrefillLayout
from engine_lib.talker.device.worker import TalkerWorker
from engine_lib.talker.scheduler import PrefillChunk, Schedule, Scheduler
from engine_lib.talker.sequence import Sequence

NONE: list[Sequence] = []


class Planner:
    """Makes plans for one worker."""

    def __init__(self, scheduler: Scheduler, worker: TalkerWorker) -> None:
        self._scheduler, self._worker = scheduler, worker
        self._block_size = worker.config.kv_block_size
        self._pad_text_id = worker.model.tts_pad_token_id

    def plans(self, schedule: Schedule) -> Iterator[tuple[Plan, list[Sequence]]]:
        """The plans of `schedule`, each with the sequences it samples a frame of. For the scheduler a plan is launched once it is made."""
        sampled, after = [chunk.sequence for chunk in schedule.prefill if chunk.completes_prompt], schedule.prefill_after
        if schedule.erase:
            yield ErasePlan(np.array(schedule.erase, np.int64)), NONE

        # prefill
        for sequence in schedule.admitted:
            if (embedding := sequence.prompt.speaker_embedding) is not None:
                yield SpeakerPlan(after, sequence.slot, embedding), NONE
        in_step = self._prefill_in_step(schedule)
        if schedule.prefill and in_step is None:
            # Before the slots, which only sampling needs: the host writes them while the device is busy with this.
            plan = self._prefill(schedule.prefill, after)
            self._scheduler.prefilled(schedule.prefill)
            yield plan, NONE
            _note_time(schedule.prefill)
        for sequence in schedule.admitted:
            yield self._slot(sequence, after), NONE
        if schedule.grown:
            yield self._block_tables(schedule.grown), NONE
        if sampled:
            yield FirstFramesPlan(0, len(sampled)), sampled

        if schedule.fed:
            yield self._text(schedule.fed), NONE

        # decode
        if in_step is not None:
            self._scheduler.prefilled(schedule.prefill, in_step=True)
        if schedule.decode:
            yield self._decode(schedule.decode, in_step), schedule.decode
        if in_step is not None:
            _note_time(schedule.prefill)

    def _prefill_in_step(self, schedule: Schedule) -> PrefillPlan | None:
        """The prompts of `schedule` if they go through the layers with its decode step."""
        chunks, streams = schedule.prefill, schedule.decode
        if not (chunks and streams) or any(chunk.completes_prompt for chunk in chunks) or any(stream.wants_scores for stream in streams):
            return None
        layout = self._worker.layout_in_step(len(streams), self._exact_layout(chunks))
        return None if layout is None else self._fill(layout, chunks, 0)

    def _prefill(self, chunks: list[PrefillChunk], after: int) -> PrefillPlan:
        return self._fill(self._worker.layout_for(self._exact_layout(chunks)), chunks, after)

    def _exact_layout(self, chunks: list[PrefillChunk]) -> PrefillLayout:
        return PrefillLayout(
            rows=sum(chunk.stop - chunk.start for chunk in chunks),
            sequences=len(chunks),
            sampled=sum(chunk.completes_prompt for chunk in chunks),
            width=max(-(-chunk.stop // self._block_size) for chunk in chunks),
            num_code_groups=chunks[0].sequence.prompt.codes.shape[1],
        )

    def _fill(self, layout: PrefillLayout, chunks: list[PrefillChunk], after: int) -> PrefillPlan:
        buffer = self._worker.prefill_buffer(layout)
        for chunk in chunks:
            sequence = chunk.sequence
            buffer.add(
                *sequence.rows(chunk.start, chunk.stop, self._pad_text_id),
                start=chunk.start,
                block_table=sequence.block_table,
                slot=sequence.slot,
                is_sampled=chunk.completes_prompt,
            )
        return PrefillPlan(after, layout, buffer.finish())

    def _slot(self, sequence: Sequence, after: int) -> SlotPlan:
        """The sampling and the text of `sequence`, and the state that follows from its kept frames (after a preemption)."""
        frames, num_rows = sequence.frames, sequence.num_rows
        _, last_codes = sequence.rows(num_rows - 1, num_rows, self._pad_text_id)
        sequence.num_text_rows_on_device = len(sequence.text_ids)
        return SlotPlan(
            after=after,
            slot=sequence.slot,
            num_rows=num_rows,
            num_frames=len(frames),
            last_codes=last_codes[0].astype(np.int64),
            seed=sequence.seed,
            sampling=sequence.request.sampling,
            seen_ids=np.array([codes[0] for codes in frames], np.int64),
            text_ids=sequence.text_ids[sequence.num_prompt_rows - 1 :].astype(np.int64),
            text_start=sequence.prompt.text_start if sequence.wants_scores else -1,
        )

    def _text(self, sequences: list[Sequence]) -> TextPlan:
        """The text that has come for `sequences` since the device last heard of their text."""
        slots, columns, text_ids = [], [], []
        for sequence in sequences:
            first, stop = sequence.num_text_rows_on_device, len(sequence.text_ids)
            sequence.num_text_rows_on_device = stop
            slots.append(np.full(stop - first, sequence.slot))
            columns.append(np.arange(first, stop) - (sequence.num_prompt_rows - 1))
            text_ids.append(sequence.text_ids[first:])
        # No step that has been launched reads these rows, so they need not be written after any.
        return TextPlan(0, *(np.concatenate(parts).astype(np.int64) for parts in (slots, columns, text_ids)))

    def _block_tables(self, sequences: list[Sequence]) -> BlockTablePlan:
        tables = np.full((len(sequences), self._worker.table_width), NULL_BLOCK, np.int32)
        for row, sequence in enumerate(sequences):
            tables[row, : len(sequence.block_table)] = sequence.block_table
        return BlockTablePlan(_slots(sequences), tables)

    def _decode(self, sequences: list[Sequence], prefill: PrefillPlan | None = None) -> DecodePlan:
        num_rows = max(sequence.num_rows_on_device for sequence in sequences) + 1
        text_rows = max((self._text_rows(sequence) for sequence in sequences if sequence.wants_scores), default=0)
        plan = DecodePlan(_slots(sequences), -(-num_rows // self._block_size), text_rows, prefill)
        self._scheduler.decoded(sequences)
        return plan

    @staticmethod
    def _text_rows(sequence: Sequence) -> int:
        """Rows of its text that its next frame may look at."""
        return max(min(sequence.num_text_rows, sequence.num_rows_on_device + 1 - sequence.prompt.text_start, MAX_TEXT_ROWS), 1)


def _note_time(chunks: list[PrefillChunk]) -> None:
    now = time.monotonic()
    for chunk in chunks:
        chunk.sequence.prefilled_at = now


def _slots(sequences: list[Sequence]) -> npt.NDArray[np.int64]:
    return np.array([sequence.slot for sequence in sequences], np.int64)
