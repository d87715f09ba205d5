"""A scheduler driven as by the engine, over a fake device that knows each row of the KV cache."""

from __future__ import annotations

from collections import deque

import numpy as np

from engine_lib.delivery import Delivery
from engine_lib.prompt import NO_ID, Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.block_keys import BlockKeys
from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.device.prefill_layout import NULL_BLOCK
from engine_lib.talker.request import FurtherText, Request, RequestListener
from engine_lib.talker.scheduler import Schedule, Scheduler
from engine_lib.talker.sequence import Sequence, SequenceStatus

PAD_TEXT_ID = 7
NOT_A_NUMBER = -1


def sequence_of(name: str, prompt: Prompt, sampling: SamplingParams) -> Sequence:
    """A sequence without a real listener; `sampling` has `max_frames`."""
    assert sampling.max_frames is not None
    return Sequence(Request(name, prompt, sampling, Delivery((1,))), RequestListener(), sampling.max_frames)


def make_sequence(name: str, num_rows: int, max_frames: int) -> Sequence:
    """A sequence with a prompt of `num_rows` empty rows."""
    prompt = Prompt(np.zeros(num_rows, np.int32), np.full((num_rows, 16), NO_ID, np.int32), np.zeros(0, np.int32), 1)
    return sequence_of(name, prompt, SamplingParams(max_frames=max_frames, seed=0))


def make_open_sequence(name: str, num_rows: int, max_frames: int) -> Sequence:
    """A sequence as by `make_sequence`, with all text to come."""
    prompt = Prompt(np.zeros(0, np.int32), np.full((num_rows, 16), NO_ID, np.int32), np.zeros(0, np.int32), 1)
    request = Request(name, prompt, SamplingParams(max_frames=max_frames, seed=0), Delivery((1,)), text_is_open=True)
    return Sequence(request, RequestListener(), max_frames)


class Simulation:
    """Checks the scheduler's promises each step; results are read `delay` steps late.

    A sequence must read its own rows from the cache: a row's content stands for the row and all before it, as keys and values
    do. The device runs prefill as early as it may, ahead of the decode steps that have not been read.
    """

    def __init__(
        self, *, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, delay: int, share: bool = False, in_steps: bool = False
    ) -> None:
        """`in_steps`: prompts go with the decode step that they are scheduled with."""
        self.blocks = BlockManager(num_blocks + 1, block_size)
        keys = BlockKeys(block_size, PAD_TEXT_ID) if share else None
        self.scheduler = Scheduler(self.blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, block_keys=keys)
        self.max_num_seqs, self.budget, self.delay, self.in_steps = max_num_seqs, budget, delay, in_steps
        self.finished: list[Sequence] = []
        self._results: deque[list[tuple[Sequence, int]]] = deque()
        self._cache: dict[tuple[int, int], int] = {}  # (block, row in it) -> content
        self._contents: dict[str, list[int]] = {}
        self._quarantined: set[int] = set()
        self._num_steps = 0  # decode steps that have run
        # those that have not: block tables, first and last rows, and contents of the rows so far
        self._launched_steps: deque[list[tuple[list[int], int, int, list[int]]]] = deque()

    def step(self) -> Schedule:
        active = list(self.scheduler.active)
        oldest = next((sequence for sequence in active if not sequence.lacks_text), None)
        schedule = self.scheduler.schedule()
        self._erase(schedule.erase)
        self._check(schedule, oldest)

        launched = [chunk.sequence for chunk in schedule.prefill if chunk.completes_prompt]
        prompts = schedule.prefill if self.in_steps and schedule.decode and not launched else []
        if prompts:
            self.scheduler.prefilled(prompts, in_step=True)
        else:
            self._prefill(schedule)
        self._write_text(schedule)
        for sequence in schedule.decode:
            has_ended = not sequence.text_is_open and sequence.num_text_rows_on_device == len(sequence.text_ids)
            assert sequence.num_rows_on_device < sequence.num_text_rows_on_device or has_ended
        if schedule.decode:
            rows = [*((chunk.sequence, chunk.start, chunk.stop) for chunk in prompts)]
            rows += [(sequence, sequence.num_rows_on_device, sequence.num_rows_on_device + 1) for sequence in schedule.decode]
            self._launched_steps.append([self._launched(*one) for one in rows])
            self.scheduler.decoded(schedule.decode)
            while len(self._launched_steps) > self.delay:
                self._run_step()
        self._results.append([(sequence, sequence.num_preemptions) for sequence in [*launched, *schedule.decode]])
        while len(self._results) > self.delay:
            for sequence, num_preemptions in self._results.popleft():
                if sequence.status is SequenceStatus.RUNNING and sequence.num_preemptions == num_preemptions:
                    self._receive(sequence)
        return schedule

    def prefill_ahead(self) -> Schedule:
        """Do as the engine when a sequence comes while a step runs: nothing if no step is to follow."""
        if not self.scheduler.will_decode:
            return Schedule()
        schedule = self.scheduler.schedule_prefill()
        self._erase(schedule.erase)
        assert not schedule.decode
        assert not any(chunk.completes_prompt for chunk in schedule.prefill)
        self._check(schedule, None)
        self._prefill(schedule)
        self._write_text(schedule)
        return schedule

    def feed(self, sequence: Sequence, num_rows: int, *, is_last: bool) -> None:
        """Text comes for `num_rows` more rows."""
        sequence.feed(FurtherText(sequence.request.stream_key, np.arange(num_rows, dtype=np.int32), 1, is_last), sequence.max_frames)
        self.scheduler.fed(sequence)

    @staticmethod
    def _write_text(schedule: Schedule) -> None:
        """Do as the planner: the device hears of the text of new sequences, and of text that has come since."""
        for sequence in [*schedule.admitted, *schedule.fed]:
            assert sequence.slot >= 0
            sequence.num_text_rows_on_device = len(sequence.text_ids)

    def _prefill(self, schedule: Schedule) -> None:
        while self._num_steps < schedule.prefill_after:
            self._run_step()
        for chunk in schedule.prefill:
            contents = self._contents_of(chunk.sequence, chunk.stop)
            self._run(chunk.sequence.block_table, chunk.start, chunk.stop, contents)
        self.scheduler.prefilled(schedule.prefill)

    def end(self, sequence: Sequence) -> None:
        """Its last frame is there, or it is cancelled."""
        self.scheduler.release(sequence)
        sequence.status = SequenceStatus.FINISHED
        self.finished.append(sequence)

    def fail(self, sequence: Sequence) -> None:
        """It computed NaN, which is now in all blocks that only it uses."""
        self._run_launched_steps()
        others = {block for other in self.scheduler.active if other is not sequence for block in other.block_table}
        self._cache |= {
            (block, row): NOT_A_NUMBER for block in sequence.block_table if block not in others for row in range(self.blocks.block_size)
        }
        self._quarantined |= set(sequence.block_table)
        self.scheduler.quarantine(sequence)
        self.end(sequence)

    def cut(self, sequence: Sequence, num_frames: int) -> None:
        """It has run away, and is spoken anew behind its first frames."""
        self.scheduler.cut(sequence, num_frames)
        del self._contents_of(sequence, 0)[sequence.num_rows :]

    def _receive(self, sequence: Sequence) -> None:
        sequence.frames.append(_frame(sequence, len(sequence.frames)))
        self.scheduler.received(sequence)
        if len(sequence.frames) == sequence.max_frames:
            self.end(sequence)

    # the device

    def _run_launched_steps(self) -> None:
        while self._launched_steps:
            self._run_step()

    def _run_step(self) -> None:
        self._num_steps += 1
        for table, start, stop, contents in self._launched_steps.popleft():
            self._run(table, start, stop, contents)

    def _launched(self, sequence: Sequence, start: int, stop: int) -> tuple[list[int], int, int, list[int]]:
        return [*sequence.block_table], start, stop, [*self._contents_of(sequence, stop)]

    def _run(self, table: list[int], start: int, stop: int, contents: list[int]) -> None:
        """Read the rows before `start`, write those up to `stop`."""
        size = self.blocks.block_size
        for row in range(start):
            assert self._cache.get((table[row // size], row % size)) == contents[row], f"row {row}"
        for row in range(start, stop):
            self._cache[table[row // size], row % size] = contents[row]

    def _contents_of(self, sequence: Sequence, num_rows: int) -> list[int]:
        contents, prompt = self._contents.setdefault(sequence.request.stream_key, []), sequence.prompt
        assert not sequence.text_is_open or num_rows <= len(sequence.text_ids)
        for row in range(len(contents), num_rows):
            frame = row - len(prompt)
            text_id = int(sequence.text_ids[row]) if row < len(sequence.text_ids) else PAD_TEXT_ID
            kept = sequence.frames[frame] if 0 <= frame < len(sequence.frames) else _frame(sequence, frame)
            codes = prompt.codes[row] if frame < 0 else kept.astype(np.int32)
            contents.append(hash((contents[-1] if contents else None, text_id, codes.tobytes())))
        return contents

    def _erase(self, blocks: list[int]) -> None:
        if not blocks:
            return
        self._run_launched_steps()
        self._quarantined -= set(blocks)
        self._cache = {place: content for place, content in self._cache.items() if place[0] not in blocks}

    def _check(self, schedule: Schedule, oldest: Sequence | None) -> None:
        scheduler, active, size = self.scheduler, self.scheduler.active, self.blocks.block_size
        tables = [block for sequence in active for block in sequence.block_table]
        used = set(tables)
        assert len(tables) == len(used) or scheduler.num_prefix_hits
        assert all(len(set(sequence.block_table)) == len(sequence.block_table) for sequence in active)
        assert NULL_BLOCK not in used
        assert self.blocks.num_free_blocks == self.blocks.num_usable_blocks - len(used)
        assert all(sequence.block_table == [] and sequence.slot == -1 for sequence in [*scheduler.waiting, *scheduler.without_text])
        assert all(sequence.has_text for sequence in scheduler.waiting)
        assert not any(sequence.has_text for sequence in scheduler.without_text)
        assert not any(self._cache.get((block, row)) == NOT_A_NUMBER for block in used for row in range(size))
        slots = [sequence.slot for sequence in active]
        assert len(set(slots)) == len(slots) == self.max_num_seqs - scheduler.num_free_slots
        assert set(slots) <= set(range(self.max_num_seqs))

        assert sum(chunk.stop - chunk.start for chunk in schedule.prefill) <= self.budget
        for chunk in schedule.prefill:
            assert chunk.sequence in active
            assert chunk.start == chunk.sequence.num_prefilled_rows < chunk.stop <= chunk.sequence.num_rows
            assert self.blocks.missing(chunk.sequence.block_table, chunk.stop) == 0
        for sequence in schedule.decode:
            assert sequence in active
            assert sequence.num_launched_frames < sequence.max_frames
            assert self.blocks.missing(sequence.block_table, sequence.num_rows_on_device + 1) == 0
            assert not sequence.text_is_open or sequence.num_rows_on_device < len(sequence.text_ids)
        # The oldest that has text is never set back: it decodes or is prefilled, unless all its frames are under way.
        if oldest is not None and oldest.num_launched_frames < oldest.max_frames:
            assert oldest in schedule.decode or oldest in [chunk.sequence for chunk in schedule.prefill]
        # An admitted sequence leaves a block for each stream that was there, and takes no block of a stream that failed.
        if schedule.admitted:
            assert self.blocks.num_free_blocks >= len(active) - 1
        for sequence in schedule.admitted:
            assert not self._quarantined & set(sequence.block_table)
        # The device hears of every new block and every new slot.
        assert set(schedule.admitted) <= set(schedule.grown) <= set(active)


def _frame(sequence: Sequence, number: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.full(16, (sequence.seed * 31 + number) % 2048, np.int16)
