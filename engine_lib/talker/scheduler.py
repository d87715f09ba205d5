"""Decides, step by step, which sequences are prefilled and which decode one frame.

Running streams come first: each gets the block its next row needs, and prefill has a row budget a step, so that a long
prompt never stalls them for longer than that budget. When the pool runs dry the youngest stream gives its blocks back and
is recomputed later from its prompt and kept codes; the oldest always makes progress. Priorities and clients (fair_queue.py) order those
that wait to begin. They change nothing for a stream that has begun: the youngest is preempted whatever its priority, and comes back first.

A prompt's last row gives the first frame. If streams run, that row joins their decode step, which samples for all of them at once:
sampling takes two thirds of a step, for one stream as for many. If none runs, prefill samples, and the frame is there sooner.

If the first rows of a sequence are in published blocks (block_manager.py), its prefill starts behind them. Blocks are published when a
frame that was sampled from them has been read: then they are on the device and free of NaN, which would have reached that frame.

Prefill may run beside a decode step that was launched earlier (worker.py). A stream's end is seen one step late, so a slot or a block
that has just come free may still be written to; the schedule says after which step the prefill of its next owner must run.

A sequence with text to come keeps its slot and its blocks while its next row lacks text; no step is spent on it. If the pool runs dry
such a sequence is preempted first. Without a slot it waits apart, so that it keeps no other from beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine_lib.admission.fair_queue import FairQueue
from engine_lib.admission.pause import AdmissionPause
from engine_lib.talker.block_keys import BlockKeys
from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.device.prefill_layout import MAX_PREFILL_SEQUENCES, MOST_IN_A_STEP
from engine_lib.talker.sequence import PREFILLING, RUNNING, Sequence, SequenceStatus


@dataclass(frozen=True)
class PrefillChunk:
    """Rows start..stop of one sequence."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def completes_prompt(self) -> bool:
        return self.stop == self.sequence.num_rows


@dataclass
class Schedule:
    """One step's work. `admitted` sequences got a slot in this step, `grown` ones new blocks; `decode` runs after `prefill`.

    Attributes:
        prefill_after: number, counted from 1, of the last decode step that may still use slots or blocks of `prefill`; 0: none.
        erase: blocks to be erased before anything else.
        fed: sequences with a slot that have got more text.
    """

    admitted: list[Sequence] = field(default_factory=list)
    grown: list[Sequence] = field(default_factory=list)
    prefill: list[PrefillChunk] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)
    prefill_after: int = 0
    erase: list[int] = field(default_factory=list)
    fed: list[Sequence] = field(default_factory=list)

    @property
    def num_prefill_rows(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self.prefill)


class Scheduler:
    """Owns the waiting queue, the slots and the KV blocks."""

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        block_keys: BlockKeys | None = None,
        backpressure: AdmissionPause | None = None,
    ) -> None:
        """
        Args:
            block_keys: None shares no blocks.
            backpressure: while it is on, no sequence begins; preempted ones go on.
        """
        self.block_manager = block_manager
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: FairQueue[Sequence] = FairQueue()
        self.active: list[Sequence] = []  # holders of a slot, oldest first
        self.num_decode_steps = self.num_decode_rows = 0  # rows: the sequences of all these steps together
        self.without_text: list[Sequence] = []  # those without a slot that lack text
        self.num_preemptions = 0
        self.num_prefix_hits = 0
        self.num_cached_rows = 0
        self._block_keys, self._backpressure = block_keys, backpressure or AdmissionPause()
        self._free_slots = deque(range(max_num_seqs))
        self._num_rows_ahead = 0  # already prefilled for the next step
        self._fed: list[Sequence] = []
        # for each slot and block: the last decode step that its former owner, or a prompt of its owner that goes on, may be part of
        self._last_steps_of_slots = [0] * max_num_seqs
        self._last_steps_of_blocks = [0] * (block_manager.num_usable_blocks + 1)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def has_work(self) -> bool:
        if not self.active:
            return self._next_may_begin
        return not all(sequence.lacks_text for sequence in self.active) or (self._next_may_begin and self._fits(self.waiting.head))

    @property
    def num_starving(self) -> int:
        """Sequences that can do nothing until more of their text comes."""
        return len(self.without_text) + sum(sequence.lacks_text for sequence in list(self.active))

    @property
    def will_decode(self) -> bool:
        """Whether the next step samples a frame of a running stream."""
        return any(map(_has_frames_to_come, self.active))

    def may_gather_prompts(self, *, in_step: bool = False) -> bool:
        """Whether one launch, or the next step with prompts in it, is enough for all that wait: then the engine may wait for more."""
        if len(self.waiting) >= MAX_PREFILL_SEQUENCES:  # thousands may wait for a slot
            return False
        rows = [num_rows for sequence in (*self.active, *self.waiting) if (num_rows := _rows_beside_others(sequence))]
        most, most_rows = MOST_IN_A_STEP if in_step else (MAX_PREFILL_SEQUENCES - 1, self.max_num_batched_tokens)
        return len(rows) <= most and sum(rows) <= min(most_rows, self.max_num_batched_tokens - self._num_rows_ahead - 1)

    @property
    def _next_may_begin(self) -> bool:
        return bool(self.waiting) and (self.waiting.head.num_preemptions > 0 or not self._backpressure.is_on)

    def add(self, sequence: Sequence) -> None:
        if sequence.has_text:
            self.waiting.add(sequence, sequence.request.turn)
        else:
            self.without_text.append(sequence)

    def fed(self, sequence: Sequence) -> None:
        """Record that `sequence` has got more text."""
        if sequence.slot >= 0:
            self._fed.append(sequence)
        elif sequence in self.without_text and sequence.has_text:
            self.without_text.remove(sequence)
            if sequence.num_preemptions:
                self.waiting.put_back(sequence)
            else:
                self.waiting.add(sequence, sequence.request.turn)

    def schedule(self) -> Schedule:
        """Plan one step and reserve the slots and blocks it needs."""
        schedule, block_size = Schedule(), self.block_manager.block_size

        # decode
        for sequence in list(self.active):
            if _has_frames_to_come(sequence):
                if sequence.num_rows_on_device < len(sequence.block_table) * block_size:  # nearly always
                    schedule.decode.append(sequence)
                elif self._reserve_next_row(sequence):
                    schedule.decode.append(sequence)
                    schedule.grown.append(sequence)

        # prefill
        for sequence in self._schedule_prefill(schedule, others_run=bool(schedule.decode)):
            sequence.num_launched_frames = len(sequence.frames)
            schedule.decode.append(sequence)
        self._num_rows_ahead = 0
        if self._fed:  # the slots of new sequences are written with all their text
            news = dict.fromkeys(self._fed)
            schedule.fed, self._fed = [sequence for sequence in news if sequence.slot >= 0 and sequence not in schedule.admitted], []
        schedule.erase = self.block_manager.take_unclean()
        return schedule

    def schedule_prefill(self) -> Schedule:
        """Plan prefill alone, before the next `schedule` with its decode step, which samples the first frames. Only if `will_decode`."""
        schedule = Schedule()
        self._schedule_prefill(schedule, others_run=True)
        self._num_rows_ahead += schedule.num_prefill_rows
        schedule.erase = self.block_manager.take_unclean()
        return schedule

    def prefilled(self, chunks: Iterable[PrefillChunk], *, in_step: bool = False) -> None:
        """Record that `chunks` are launched, or go with the next decode step; a prompt's last row gives a frame, launched too."""
        for chunk in chunks:
            completes_prompt, sequence = chunk.completes_prompt, chunk.sequence
            sequence.num_prefilled_rows = chunk.stop
            if in_step:
                self._last_steps_of_slots[sequence.slot] = self.num_decode_steps + 1
            if completes_prompt:
                sequence.num_launched_frames = len(sequence.frames) + 1
                sequence.status = RUNNING

    def decoded(self, sequences: list[Sequence]) -> None:
        """Record that a frame of each of `sequences` is launched."""
        self.num_decode_steps += 1
        self.num_decode_rows += len(sequences)
        for sequence in sequences:
            sequence.num_launched_frames += 1
            sequence.status = RUNNING

    def received(self, sequence: Sequence) -> None:
        """Record that a frame of `sequence` was read and is sound; its prompt may now be shared."""
        computed_prompt = sequence.num_sound_rows < sequence.num_prompt_rows
        sequence.num_sound_rows = sequence.num_rows - 1  # all but the new frame's own
        if computed_prompt:
            self._publish(sequence)

    def quarantine(self, sequence: Sequence) -> None:
        """Record that `sequence` computed a value that is not a number: its blocks must be erased before their next use."""
        self.block_manager.quarantine(sequence.block_table)

    def release(self, sequence: Sequence) -> None:
        """Take back the slot and the blocks of `sequence`, or its place in the queue."""
        if sequence.slot >= 0:
            self.active.remove(sequence)
            self._free_slots.append(sequence.slot)
            self._last_steps_of_slots[sequence.slot] = self.num_decode_steps
            if sequence.num_sound_rows < sequence.num_rows - 1:  # no frame of these rows has been read, so they may hold NaN
                self.block_manager.quarantine(sequence.block_table[sequence.num_sound_rows // self.block_manager.block_size :])
            for block in sequence.block_table:
                self._last_steps_of_blocks[block] = self.num_decode_steps
            sequence.slot = -1
            self.block_manager.free(sequence.block_table)
        elif sequence in self.without_text:
            self.without_text.remove(sequence)
        else:
            self.waiting.discard(sequence)

    def _reserve_next_row(self, sequence: Sequence) -> bool:
        """Get a block for the next row, if need be by preempting those that lack text, then the youngest. False: it was one itself."""
        while not self.block_manager.grow(sequence.block_table, sequence.num_rows_on_device + 1):
            youngest_first = self.active[::-1]
            victim = next((other for other in youngest_first if other.lacks_text), youngest_first[0])
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def cut(self, sequence: Sequence, num_frames: int) -> None:
        """Forget the frames of `sequence` behind the first `num_frames`. It goes on there as after a preemption."""
        self._give_back(sequence)
        sequence.cut(num_frames)
        del sequence.block_keys[sequence.num_rows // self.block_manager.block_size :]
        sequence.num_sound_rows = 0
        self._put_back(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._give_back(sequence)
        self.num_preemptions += 1
        self._put_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        """Take the slot and the blocks of `sequence`, or its place in the queue; what has been launched for it is void."""
        self._publish(sequence)  # blocks that are not taken meanwhile need not be computed again
        self.release(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_prefilled_rows = 0
        sequence.num_launched_frames = 0
        sequence.num_preemptions += 1

    def _put_back(self, sequence: Sequence) -> None:
        if sequence.has_text:
            self.waiting.put_back(sequence)
        else:
            self.without_text.append(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether `sequence` could be admitted now."""
        return bool(self._free_slots) and self._free_blocks_after(sequence, self._shared(sequence)) >= len(self.active)

    def _shared(self, sequence: Sequence) -> list[int]:
        """The published blocks that `sequence` may begin with. Its last row is always computed: a frame is sampled from it."""
        return self.block_manager.published(self._block_keys.of(sequence, sequence.num_rows - 1)) if self._block_keys else []

    def _free_blocks_after(self, sequence: Sequence, shared: list[int]) -> int:
        """Blocks that are left free once `sequence` has got its own."""
        blocks = self.block_manager
        return blocks.num_free_blocks - blocks.num_idle(shared) - (blocks.blocks_for(_rows_at_first(sequence)) - len(shared))

    def _admit(self, sequence: Sequence) -> bool:
        """Give `sequence` a slot, and blocks for all rows it has. Returns False if running streams may soon need those blocks."""
        blocks = self.block_manager
        shared = self._shared(sequence)
        if self._free_blocks_after(sequence, shared) < len(self.active):  # every running stream may ask for one more block
            return False
        blocks.share(sequence.block_table, shared)
        blocks.grow(sequence.block_table, _rows_at_first(sequence))
        sequence.num_prefilled_rows = sequence.num_sound_rows = len(shared) * blocks.block_size
        self.num_prefix_hits += bool(shared)
        self.num_cached_rows += sequence.num_prefilled_rows
        sequence.slot = self._free_slots.popleft()
        sequence.status = PREFILLING
        self.active.append(sequence)
        return True

    def _last_step_of(self, sequence: Sequence) -> int:
        """The last decode step in which a former owner may use the slot or a block of `sequence`, which was just admitted."""
        # Without shared blocks: that step only reads them, too.
        own = sequence.block_table[sequence.num_prefilled_rows // self.block_manager.block_size :]
        return max(self._last_steps_of_slots[sequence.slot], *(self._last_steps_of_blocks[block] for block in own))

    def _publish(self, sequence: Sequence) -> None:
        if self._block_keys:
            self.block_manager.publish(sequence.block_table, self._block_keys.of(sequence, sequence.num_sound_rows))

    def _schedule_prefill(self, schedule: Schedule, *, others_run: bool) -> list[Sequence]:
        """Plan the next prompt rows, of new sequences too. If others run, return the sequences that then miss only their last row."""
        ready = []
        for sequence in self.active:
            if sequence.status is PREFILLING:
                schedule.prefill_after = max(schedule.prefill_after, self._last_steps_of_slots[sequence.slot])
                if self._plan_prefill(sequence, schedule, others_run):
                    ready.append(sequence)
        while self._room(schedule) and self._free_slots and self._next_may_begin and self._admit(self.waiting.head):
            sequence = self.waiting.take()
            schedule.admitted.append(sequence)
            schedule.grown.append(sequence)
            schedule.prefill_after = max(schedule.prefill_after, self._last_step_of(sequence))
            if self._plan_prefill(sequence, schedule, others_run):
                ready.append(sequence)
        return ready

    def _plan_prefill(self, sequence: Sequence, schedule: Schedule, others_run: bool) -> bool:
        """Plan the next rows of `sequence`, but not its last if others run. Returns True if only the last row is missing."""
        start, last = sequence.num_prefilled_rows, sequence.num_rows - 1
        stop = min(last if others_run else last + 1, start + self._room(schedule))
        if stop > start:
            schedule.prefill.append(PrefillChunk(sequence, start, stop))
        return others_run and stop == last

    def _room(self, schedule: Schedule) -> int:
        """Prompt rows that may join `schedule`."""
        if len(schedule.prefill) >= MAX_PREFILL_SEQUENCES:
            return 0
        return max(self.max_num_batched_tokens - self._num_rows_ahead - schedule.num_prefill_rows, 0)


def _has_frames_to_come(sequence: Sequence) -> bool:
    return sequence.status is RUNNING and sequence.num_launched_frames < sequence.num_possible_frames


def _rows_beside_others(sequence: Sequence) -> int:
    """Prompt rows of `sequence` that are not launched, but for the last, which joins the decode step of others."""
    return 0 if sequence.status is RUNNING else sequence.num_rows - 1 - sequence.num_prefilled_rows


def _rows_at_first(sequence: Sequence) -> int:
    """Rows that `sequence` gets blocks for when it is admitted."""
    return min(sequence.num_rows + 1, sequence.max_rows)
