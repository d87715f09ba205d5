"""A scheduler driven as the engine drives it, over a fake device that knows what each row of the KV cache holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from engine_lib.prompt import NO_ID, Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.block_keys import BlockKeys
from engine_lib.talker.block_manager import NULL_BLOCK, BlockManager
from engine_lib.talker.request import Request, RequestStatus
from engine_lib.talker.scheduler import Schedule, Scheduler

PAD_TEXT_ID = 7
NOT_A_NUMBER = -1


def make_request(name: str, num_rows: int, max_frames: int) -> Request:
    """A request whose prompt is `num_rows` empty rows."""
    prompt = Prompt(np.zeros(num_rows, np.int32), np.full((num_rows, 16), NO_ID, np.int32), np.zeros(0, np.int32), 1)
    return Request(name, prompt, SamplingParams(max_frames=max_frames, seed=0), (1,), lambda chunk: None)


class Simulation:
    """Checks the scheduler's promises each step; results are read `delay` steps late.

    What a request reads from the cache must be what its own rows have there: a row's content stands for the row and all before
    it, as keys and values do. The device runs prefill as early as it may, ahead of the decode steps that nobody has read.
    """

    def __init__(self, *, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, delay: int, share: bool = False) -> None:
        self.blocks = BlockManager(num_blocks + 1, block_size, self._erase)
        keys = BlockKeys(block_size, PAD_TEXT_ID) if share else None
        self.scheduler = Scheduler(self.blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, block_keys=keys)
        self.max_num_seqs, self.budget, self.delay = max_num_seqs, budget, delay
        self.finished: list[Request] = []
        self._results: deque[list[tuple[Request, int]]] = deque()
        self._cache: dict[tuple[int, int], int] = {}  # (block, row in it) -> content
        self._contents: dict[str, list[int]] = {}
        self._quarantined: set[int] = set()
        self._num_steps = 0  # decode steps that have run
        self._launched_steps: deque[list[tuple[Request, list[int], int]]] = deque()  # those that have not: their rows and block tables

    def step(self) -> Schedule:
        active = list(self.scheduler.active)
        oldest = active[0] if active else None
        schedule = self.scheduler.schedule()
        self._check(schedule, oldest)

        launched = [chunk.request for chunk in schedule.prefill if chunk.completes_prompt]
        self._prefill(schedule)
        if schedule.decode:
            self._launched_steps.append([(request, [*request.block_table], request.num_rows_on_device) for request in schedule.decode])
            self.scheduler.decoded(schedule.decode)
            while len(self._launched_steps) > self.delay:
                self._run_step()
        self._results.append([(request, request.num_preemptions) for request in [*launched, *schedule.decode]])
        while len(self._results) > self.delay:
            for request, num_preemptions in self._results.popleft():
                if request.status is RequestStatus.RUNNING and request.num_preemptions == num_preemptions:
                    self._receive(request)
        return schedule

    def prefill_ahead(self) -> Schedule:
        """What the engine does when a request comes while a step runs; nothing where no step is to follow."""
        if not self.scheduler.will_decode:
            return Schedule()
        schedule = self.scheduler.schedule_prefill()
        assert not schedule.decode
        assert not any(chunk.completes_prompt for chunk in schedule.prefill)
        self._check(schedule, None)
        self._prefill(schedule)
        return schedule

    def _prefill(self, schedule: Schedule) -> None:
        while self._num_steps < schedule.prefill_after:
            self._run_step()
        for chunk in schedule.prefill:
            self._run(chunk.request, chunk.request.block_table, chunk.start, chunk.stop)
        self.scheduler.prefilled(schedule.prefill)

    def end(self, request: Request) -> None:
        """Its last frame is there, or it is cancelled."""
        self.scheduler.release(request)
        request.status = RequestStatus.FINISHED
        self.finished.append(request)

    def fail(self, request: Request) -> None:
        """It computed NaN, which is now wherever only it has written."""
        self._run_launched_steps()
        others = {block for other in self.scheduler.active if other is not request for block in other.block_table}
        self._cache |= {
            (block, row): NOT_A_NUMBER for block in request.block_table if block not in others for row in range(self.blocks.block_size)
        }
        self._quarantined |= set(request.block_table)
        self.scheduler.quarantine(request)
        self.end(request)

    def _receive(self, request: Request) -> None:
        request.frames.append(_frame(request, len(request.frames)))
        self.scheduler.received(request)
        if len(request.frames) == request.max_frames:
            self.end(request)

    # the device

    def _run_launched_steps(self) -> None:
        while self._launched_steps:
            self._run_step()

    def _run_step(self) -> None:
        self._num_steps += 1
        for request, table, row in self._launched_steps.popleft():
            self._run(request, table, row, row + 1)

    def _run(self, request: Request, table: Sequence[int], start: int, stop: int) -> None:
        """Read the rows before `start`, write those up to `stop`."""
        size, contents = self.blocks.block_size, self._contents_of(request, stop)
        for row in range(start):
            assert self._cache.get((table[row // size], row % size)) == contents[row], f"row {row} of {request.request_id}"
        for row in range(start, stop):
            self._cache[table[row // size], row % size] = contents[row]

    def _contents_of(self, request: Request, num_rows: int) -> list[int]:
        contents, prompt = self._contents.setdefault(request.request_id, []), request.prompt
        for row in range(len(contents), num_rows):
            frame = row - len(prompt)
            if frame < 0:
                text_id, codes = int(prompt.text_ids[row]), prompt.codes[row]
            else:
                trailing = prompt.trailing_text_ids
                text_id = int(trailing[frame]) if frame < len(trailing) else PAD_TEXT_ID
                codes = _frame(request, frame).astype(np.int32)
            contents.append(hash((contents[-1] if contents else None, text_id, codes.tobytes())))
        return contents

    def _erase(self, blocks: Sequence[int]) -> None:
        self._run_launched_steps()
        self._quarantined -= set(blocks)
        self._cache = {place: content for place, content in self._cache.items() if place[0] not in blocks}

    def _check(self, schedule: Schedule, oldest: Request | None) -> None:
        scheduler, active, size = self.scheduler, self.scheduler.active, self.blocks.block_size
        tables = [block for request in active for block in request.block_table]
        held = set(tables)
        assert len(tables) == len(held) or scheduler.num_prefix_hits
        assert all(len(set(request.block_table)) == len(request.block_table) for request in active)
        assert NULL_BLOCK not in held
        assert self.blocks.num_free_blocks == self.blocks.num_usable_blocks - len(held)
        assert all(request.block_table == [] and request.slot == -1 for request in scheduler.waiting)
        assert not any(self._cache.get((block, row)) == NOT_A_NUMBER for block in held for row in range(size))
        slots = [request.slot for request in active]
        assert len(set(slots)) == len(slots) == self.max_num_seqs - scheduler.num_free_slots
        assert set(slots) <= set(range(self.max_num_seqs))

        assert sum(chunk.stop - chunk.start for chunk in schedule.prefill) <= self.budget
        for chunk in schedule.prefill:
            assert chunk.request in active
            assert chunk.start == chunk.request.num_prefilled_rows < chunk.stop <= chunk.request.num_rows
            assert self.blocks.missing(chunk.request.block_table, chunk.stop) == 0
        for request in schedule.decode:
            assert request in active
            assert request.num_launched_frames < request.max_frames
            assert self.blocks.missing(request.block_table, request.num_rows_on_device + 1) == 0
        # The oldest is never set back: it decodes or is prefilled, unless all its frames are under way.
        if oldest is not None and oldest.num_launched_frames < oldest.max_frames:
            assert oldest in schedule.decode or oldest in [chunk.request for chunk in schedule.prefill]
        # Who was let in leaves a block for each stream that was there, and takes no block of a stream that failed.
        if schedule.admitted:
            assert self.blocks.num_free_blocks >= len(active) - 1
        for request in schedule.admitted:
            assert not self._quarantined & set(request.block_table)
        # The device hears of every new block and every new slot.
        assert set(schedule.admitted) <= set(schedule.grown) <= set(active)


def _frame(request: Request, number: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.full(16, (request.seed * 31 + number) % 2048, np.int16)
