"""Decides, step by step, which requests are prefilled and which decode one frame.

Running streams come first: each gets the block its next row needs, and prefill has a row budget a step, so that a long
prompt never stalls them for longer than that budget. When the pool runs dry the youngest stream gives its blocks back and
is recomputed later from its prompt and kept codes; the oldest always makes progress.

A prompt's last row gives the first frame. Where streams run, that row joins their decode step, which draws for all of them at once:
a draw takes two thirds of a step, whether for one stream or for many. Where none runs, prefill draws, and the frame is there sooner.

A request whose first rows are in a published block (block_manager.py) starts its prefill behind them. Blocks are published when a
frame has been read that was drawn from them: so they are on the device, and hold no NaN, which would have reached that frame.

Prefill may run beside a decode step that was launched earlier (worker.py). A stream's end is seen one step late, so a slot or a block
that has just come free may still be written to; the schedule says which step the prefill of its next owner must come after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine_lib.talker.block_keys import BlockKeys
from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.request import PREFILLING, RUNNING, Request, RequestStatus

MAX_PREFILL_REQUESTS = 16  # in one step: prefill graphs have a fixed number of sequences


@dataclass(frozen=True)
class PrefillChunk:
    """Rows start..stop of one request."""

    request: Request
    start: int
    stop: int

    @property
    def completes_prompt(self) -> bool:
        return self.stop == self.request.num_rows


@dataclass
class Schedule:
    """One step's work. `admitted` requests got a slot in this step, `grown` ones new blocks; `decode` runs behind `prefill`.

    Attributes:
        prefill_after: number, counted from 1, of the last decode step that may use what the admitted requests were given; 0: none.
    """

    admitted: list[Request] = field(default_factory=list)
    grown: list[Request] = field(default_factory=list)
    prefill: list[PrefillChunk] = field(default_factory=list)
    decode: list[Request] = field(default_factory=list)
    prefill_after: int = 0

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
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            block_keys: None shares no blocks.
            may_begin: whether requests may begin now; those that have, and were preempted, always go on.
        """
        self.block_manager = block_manager
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.active: list[Request] = []  # holders of a slot, oldest first
        self.num_preemptions = 0
        self.num_prefix_hits = 0
        self.num_cached_rows = 0
        self._block_keys, self._may_begin = block_keys, may_begin
        self._free_slots = deque(range(max_num_seqs))
        self._num_rows_ahead = 0  # prefilled for the coming step already
        self._num_decode_steps = 0
        # of each slot and block: the last decode step that its former owner may be part of
        self._last_steps_of_slots = [0] * max_num_seqs
        self._last_steps_of_blocks = [0] * (block_manager.num_usable_blocks + 1)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def has_work(self) -> bool:
        return bool(self.active) or self._next_may_begin

    @property
    def will_decode(self) -> bool:
        """Whether the next step has a frame to draw for a stream that runs."""
        return any(map(_has_frames_to_come, self.active))

    @property
    def _next_may_begin(self) -> bool:
        return bool(self.waiting) and (self.waiting[0].num_preemptions > 0 or self._may_begin())

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self) -> Schedule:
        """Plan one step and reserve what it needs."""
        schedule, block_size = Schedule(), self.block_manager.block_size

        # decode
        for request in list(self.active):
            if _has_frames_to_come(request):
                if request.num_rows_on_device < len(request.block_table) * block_size:  # nearly always
                    schedule.decode.append(request)
                elif self._reserve_next_row(request):
                    schedule.decode.append(request)
                    schedule.grown.append(request)

        # prefill
        for request in self._schedule_prefill(schedule, others_run=bool(schedule.decode)):
            request.num_launched_frames = len(request.frames)
            schedule.decode.append(request)
        self._num_rows_ahead = 0
        return schedule

    def schedule_prefill(self) -> Schedule:
        """Plan prefill alone, ahead of the next `schedule`, whose decode step draws the first frames. Only while `will_decode`."""
        schedule = Schedule()
        self._schedule_prefill(schedule, others_run=True)
        self._num_rows_ahead += schedule.num_prefill_rows
        return schedule

    def prefilled(self, chunks: Iterable[PrefillChunk]) -> None:
        """Record that `chunks` are on the device; a request whose rows are all in has its next frame under way."""
        for chunk in chunks:
            completes_prompt, request = chunk.completes_prompt, chunk.request
            request.num_prefilled_rows = chunk.stop
            if completes_prompt:
                request.num_launched_frames = len(request.frames) + 1
                request.status = RUNNING

    def decoded(self, requests: Iterable[Request]) -> None:
        """Record that a frame of each of `requests` is on the device."""
        self._num_decode_steps += 1
        for request in requests:
            request.num_launched_frames += 1
            request.status = RUNNING

    def received(self, request: Request) -> None:
        """Record that a frame of `request` was read and is sound; its prompt may now be shared."""
        computed_prompt = request.num_sound_rows < request.num_prompt_rows
        request.num_sound_rows = request.num_rows - 1  # all but the new frame's own
        if computed_prompt:
            self._publish(request)

    def quarantine(self, request: Request) -> None:
        """Record that `request` computed something that is not a number: its blocks are not to be used as they are."""
        self.block_manager.quarantine(request.block_table)

    def release(self, request: Request) -> None:
        """Take back the slot and the blocks of `request`, or its place in the queue."""
        if request.slot >= 0:
            self.active.remove(request)
            self._free_slots.append(request.slot)
            self._last_steps_of_slots[request.slot] = self._num_decode_steps
            for block in request.block_table:
                self._last_steps_of_blocks[block] = self._num_decode_steps
            request.slot = -1
            self.block_manager.free(request.block_table)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _reserve_next_row(self, request: Request) -> bool:
        """A block for the next row, from the youngest streams if need be; False when `request` itself was preempted."""
        while not self.block_manager.grow(request.block_table, request.num_rows_on_device + 1):
            youngest = self.active[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._publish(request)  # what nobody takes meanwhile need not be computed again
        self.release(request)
        request.status = RequestStatus.WAITING
        request.num_prefilled_rows = 0
        request.num_launched_frames = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _admit(self, request: Request) -> bool:
        """Give `request` a slot and blocks for all rows it has, unless running streams are about to need those blocks."""
        blocks = self.block_manager
        soon_needed = len(self.active)  # every running stream may ask for one more block
        num_rows = min(request.num_rows + 1, request.max_rows)
        # The last row is always computed: a frame is drawn from it.
        shared = blocks.published(self._block_keys.of(request, request.num_rows - 1)) if self._block_keys else []
        free_after = blocks.num_free_blocks - blocks.num_idle(shared) - (blocks.blocks_for(num_rows) - len(shared))
        if free_after < soon_needed:
            return False
        blocks.share(request.block_table, shared)
        blocks.grow(request.block_table, num_rows)
        request.num_prefilled_rows = request.num_sound_rows = len(shared) * blocks.block_size
        self.num_prefix_hits += bool(shared)
        self.num_cached_rows += request.num_prefilled_rows
        request.slot = self._free_slots.popleft()
        request.status = PREFILLING
        self.active.append(request)
        return True

    def _last_step_of(self, request: Request) -> int:
        """The last decode step that may use the slot or a block of `request`, which was just admitted, for a former owner."""
        # A shared block is only read, by the step as well.
        own = request.block_table[request.num_prefilled_rows // self.block_manager.block_size :]
        return max(self._last_steps_of_slots[request.slot], *(self._last_steps_of_blocks[block] for block in own))

    def _publish(self, request: Request) -> None:
        if self._block_keys:
            self.block_manager.publish(request.block_table, self._block_keys.of(request, request.num_sound_rows))

    def _schedule_prefill(self, schedule: Schedule, *, others_run: bool) -> list[Request]:
        """Plan the next prompt rows, of new requests too; where others run, return those that then lack nothing but their last row."""
        ready = []
        for request in self.active:
            if request.status is PREFILLING and self._plan_prefill(request, schedule, others_run):
                ready.append(request)
        while self._room(schedule) and self._free_slots and self._next_may_begin and self._admit(self.waiting[0]):
            request = self.waiting.popleft()
            schedule.admitted.append(request)
            schedule.grown.append(request)
            schedule.prefill_after = max(schedule.prefill_after, self._last_step_of(request))
            if self._plan_prefill(request, schedule, others_run):
                ready.append(request)
        return ready

    def _plan_prefill(self, request: Request, schedule: Schedule, others_run: bool) -> bool:
        """Plan as many of the next rows of `request` as there is room for; its last one is left where others run. Is that all it lacks?"""
        start, last = request.num_prefilled_rows, request.num_rows - 1
        stop = min(last if others_run else last + 1, start + self._room(schedule))
        if stop > start:
            schedule.prefill.append(PrefillChunk(request, start, stop))
        return others_run and stop == last

    def _room(self, schedule: Schedule) -> int:
        """Prompt rows that may join `schedule`."""
        if len(schedule.prefill) >= MAX_PREFILL_REQUESTS:
            return 0
        return max(self.max_num_batched_tokens - self._num_rows_ahead - schedule.num_prefill_rows, 0)


def _has_frames_to_come(request: Request) -> bool:
    return request.status is RUNNING and request.num_launched_frames < request.max_frames
