"""A rank other than 0: a process that loads its shard and executes the plans that rank 0 broadcasts.

rank_zero.py starts it, with the number of its end of the pipe. It ends when that pipe closes, and at once when the process that
started it is gone.
"""

from __future__ import annotations

import logging
from multiprocessing.connection import Connection

import torch

from engine_lib.checkpoint import Checkpoint, Shard
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device
from engine_lib.process.child import run_child
from engine_lib.process.loading import LoadFailed
from engine_lib.talker.device.load_summary import load_summary
from engine_lib.talker.device.plan import PLAN_WIRE
from engine_lib.talker.device.ranks import Ranks
from engine_lib.talker.device.worker import TalkerWorker
from engine_lib.talker.parallel.all_reduce import RankGroup, open_store
from engine_lib.talker.parallel.messages import FROM_RANK, TO_RANK, AgreedBlocks, LoadRank, RankLoaded

logger = logging.getLogger(__name__)


class OtherRank(Ranks):
    """This rank, as its worker sees it."""

    reads_results = False  # rank 0 reads the same codes

    def __init__(self, load: LoadRank, pipe: Connection) -> None:
        self.shard = Shard(load.rank, load.size)
        self.can_be_captured = load.backend == "nccl"
        self.label = f"rank {load.rank} of {load.size}, "
        self._load, self._pipe = load, pipe
        self._group: RankGroup | None = None

    def agree_on(self, num_blocks: int) -> int:
        """See Ranks."""
        self._pipe.send_bytes(FROM_RANK.pack(RankLoaded(num_blocks)))
        agreed = TO_RANK.unpack(self._pipe.recv_bytes())
        assert isinstance(agreed, AgreedBlocks)
        self._group = RankGroup(self._load.backend, open_store(self._load.store_port), self.shard, torch.device(self._load.device))
        self._group.connect()
        self.all_reduce = self._group.all_reduce
        return agreed.num_blocks

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.abort(self.release_graphs)


def serve(pipe: Connection) -> None:
    """Load, then execute plans until `pipe` closes."""
    load = TO_RANK.unpack(pipe.recv_bytes())
    assert isinstance(load, LoadRank)
    level, name = load.log_level, f"rank {load.rank}"
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s talker {name}: %(message)s")
    torch.set_num_threads(load.num_threads)
    ranks, device = OtherRank(load, pipe), torch.device(load.device)
    config, dtype = EngineConfig(**load.config), getattr(torch, load.dtype)
    try:
        with torch.inference_mode(), on_device(device):
            try:
                worker = TalkerWorker(Checkpoint(config.model_path), config, device=device, dtype=dtype, ranks=ranks)
                worker.capture()
                logger.info("%s", load_summary(worker))
            except Exception as error:
                pipe.send_bytes(FROM_RANK.pack(LoadFailed.of(error)))
                raise
            with worker.on_stream():
                while True:
                    worker.execute(PLAN_WIRE.unpack(pipe.recv_bytes()))
    except (EOFError, ConnectionError):
        logger.info("rank 0 has closed the pipe")
    finally:
        ranks.close()


if __name__ == "__main__":
    run_child(serve, "a tensor parallel rank")
