"""RankZero: starts the other ranks as processes, broadcasts each plan, and notices when one ends.

A plan travels through one pipe to each rank: a few microseconds a rank, and nothing comes back, because every rank samples the
same codes. A rank lives as long as its pipe: it ends when the pipe closes, and its own end closes the pipe here.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, Pipe

import torch

from engine_lib.checkpoint import Checkpoint, Shard
from engine_lib.checkpoint_config import DecoderShape
from engine_lib.config import TENSOR_PARALLEL_SIZES, EngineConfig
from engine_lib.errors import ConfigError
from engine_lib.process.child import ChildProcess, end_of, start_child
from engine_lib.process.loading import LoadFailed
from engine_lib.talker.device.plan import PLAN_WIRE, Plan
from engine_lib.talker.device.ranks import RankError, Ranks
from engine_lib.talker.parallel.all_reduce import RankGroup, new_store
from engine_lib.talker.parallel.messages import FROM_RANK, TO_RANK, AgreedBlocks, LoadRank

logger = logging.getLogger(__name__)

RANK_MODULE = "engine_lib.talker.parallel.other_rank"
END_SECONDS = 5.0  # until ranks that should end are killed
POLL_SECONDS = 5e-5  # between checks of an event that the device may never reach


def start_ranks(checkpoint: Checkpoint, config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Ranks:
    """The ranks that `tensor_parallel_size` asks for; the others are loading when this returns.

    Raises:
        ConfigError: that many ranks do not fit the checkpoint or this machine.
    """
    size = config.tensor_parallel_size
    if size == 1:
        return Ranks()
    _check_shape(size, checkpoint.config.talker.shape)
    backend = config.tensor_parallel_backend
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    devices = _devices(size, backend, device)
    config = replace(config, model_path=str(checkpoint.path.resolve()))
    return RankZero(config, backend, devices, dtype)


class RankZero(Ranks):
    """This process, and the processes of the other ranks."""

    def __init__(self, config: EngineConfig, backend: str, devices: Sequence[torch.device], dtype: torch.dtype) -> None:
        """Start a rank on each of `devices` but the first, which is this process's own."""
        self.shard = Shard(0, len(devices))
        self.can_be_captured = backend == "nccl"
        self.label = f"rank 0 of {len(devices)}, "
        self._backend, self._device = backend, devices[0]
        self._failure: RankError | None = None
        self._on_failure: Callable[[], None] = lambda: None
        self._group: RankGroup | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._store, port = new_store()
        self._pipes: list[Connection] = []
        self._processes: list[ChildProcess] = []
        self._watchers: list[threading.Thread] = []
        with self.closed_on_error():
            for rank in range(1, len(devices)):
                load = LoadRank(
                    rank=rank,
                    size=len(devices),
                    store_port=port,
                    backend=backend,
                    device=str(devices[rank]),
                    dtype=str(dtype).removeprefix("torch."),
                    num_threads=torch.get_num_threads(),
                    log_level=logger.getEffectiveLevel(),
                    config=asdict(config),
                )
                ours, theirs = Pipe()
                self._pipes.append(ours)
                with theirs:
                    self._processes.append(start_child(RANK_MODULE, theirs))
                with suppress(ConnectionError):  # if it has died by now, `agree_on` notices
                    ours.send_bytes(TO_RANK.pack(load))

    def agree_on(self, num_blocks: int) -> int:
        """See Ranks; waits until the others have loaded.

        Raises:
            ConfigError, CheckpointError, RankError: one of them could not load.
        """
        num_blocks = min(num_blocks, *(self._answer(rank) for rank in range(1, self.shard.count)))
        for rank, process in enumerate(self._processes, 1):
            self._watchers.append(threading.Thread(target=self._watch, args=(rank, process), name=f"talker-rank-{rank}", daemon=True))
            self._watchers[-1].start()
        self._send(TO_RANK.pack(AgreedBlocks(num_blocks)))
        self._group = RankGroup(self._backend, self._store, self.shard, self._device)
        self.check()  # a watcher that noticed an end before there was a group had none to abort
        self._group.connect()
        self.all_reduce = self._group.all_reduce
        pids = ", ".join(str(process.pid) for process in self._processes)
        logger.info("the talker runs on %d ranks, which sum by %s; the others are processes %s", self.shard.count, self._backend, pids)
        return num_blocks

    def broadcast(self, plan: Plan) -> None:
        """See Ranks."""
        self._send(PLAN_WIRE.pack(plan))

    def check(self) -> None:
        """See Ranks."""
        if self._failure is not None:
            raise self._failure

    def wait_for(self, event: torch.cuda.Event) -> None:
        """See Ranks. An all_reduce with a dead rank may never end, so this checks for one while it waits."""
        while not event.query():
            self.check()
            time.sleep(POLL_SECONDS)

    def finish(self) -> None:
        """See Ranks."""
        if self._device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
            self.wait_for(done)

    def watch(self, on_failure: Callable[[], None]) -> None:
        """See Ranks."""
        self._on_failure = on_failure
        if self._failure is not None:
            on_failure()

    def close(self) -> None:
        """See Ranks."""
        with self._lock:
            self._closing = True
            for pipe in self._pipes:
                pipe.close()
            deadline = time.monotonic() + END_SECONDS
            for process in self._processes:
                try:
                    process.wait(max(deadline - time.monotonic(), 0.0))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for watcher in self._watchers:
                watcher.join()
            if self._group is not None:
                self._group.abort(self.release_graphs)
                self._group = None

    def _answer(self, rank: int) -> int:
        """The KV blocks that `rank` has room for, once it has loaded."""
        try:
            answer = FROM_RANK.unpack(self._pipes[rank - 1].recv_bytes())
        except (EOFError, ConnectionError):
            raise self._end_of(rank) from None
        if isinstance(answer, LoadFailed):
            raise answer.to_error(RankError, f"tensor parallel rank {rank}")
        return answer.num_blocks

    def _send(self, message: bytes) -> None:
        for rank, pipe in enumerate(self._pipes, 1):
            try:
                pipe.send_bytes(message)
            except ConnectionError:
                raise self._end_of(rank) from None

    def _watch(self, rank: int, process: ChildProcess) -> None:
        """Wait for the end of a rank. Unless it was asked to end, abort the group and report the failure."""
        code = process.wait()
        if self._closing and code == 0:
            return
        failure = self._end_of(rank)
        logger.error("%s", failure)
        self._failure = self._failure or failure
        group = self._group
        if group is not None and not self._closing:
            group.abort(self.release_graphs)
        self._on_failure()

    def _end_of(self, rank: int) -> RankError:
        """The error that says how `rank` has ended; waits for its end. Its pipe has closed."""
        process = self._processes[rank - 1]
        return RankError(f"tensor parallel rank {rank} (process {process.pid}) ended with {end_of(process.wait())}; its output says why")


def _check_shape(size: int, shape: DecoderShape) -> None:
    """Refuse a size that does not cut the checkpoint's layers into equal parts."""
    parts = {
        "heads": shape.num_attention_heads,
        "KV heads": shape.num_key_value_heads,
        "rows of its feed-forward layers": shape.intermediate_size,
    }
    for what, number in parts.items():
        if number % size:
            allowed = [n for n in TENSOR_PARALLEL_SIZES if all(number % n == 0 for number in parts.values())]
            raise ConfigError(
                f"tensor_parallel_size: {size} does not divide the checkpoint's {number} {what}; "
                f"it can be {' or '.join(map(str, allowed))} here"
            )


def _devices(size: int, backend: str, first: torch.device) -> list[torch.device]:
    """The device of each rank: as many GPUs as ranks from `first` on; with gloo, through the host, ranks may share a GPU."""
    if first.type == "cpu":
        if backend == "nccl":
            raise ConfigError("tensor_parallel_backend: nccl is for GPUs; use auto or gloo on the CPU")
        return [first] * size
    start, count = first.index, torch.cuda.device_count()
    if backend == "gloo":
        return [torch.device("cuda", (start + rank) % count) for rank in range(size)]
    if start + size > count:
        raise ConfigError(
            f"tensor_parallel_size: {size} GPUs from cuda:{start} on are not there; this machine has {count}, "
            f"so {count - start} at most from this device"
        )
    return [torch.device("cuda", start + rank) for rank in range(size)]
