"""A rank other than 0 of a tensor-parallel talker: a process that loads its shard and does what rank 0 tells it.

Started by talker/parallel/rank_zero.py, with the number of its end of the pipe. It ends when that pipe closes, and at once when
the process that started it is gone.
"""

from __future__ import annotations

import json
import logging
from multiprocessing.connection import Connection

import torch

from engine_lib.checkpoint import Checkpoint, Shard
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device
from engine_lib.process.child import run_child
from engine_lib.talker.device.load_summary import load_summary
from engine_lib.talker.device.plan import PLAN_WIRE
from engine_lib.talker.device.ranks import Ranks
from engine_lib.talker.device.worker import TalkerRunner
from engine_lib.talker.parallel.all_reduce import RankGroup, open_store
from engine_lib.talker.parallel.rank_zero import RankSetup

logger = logging.getLogger(__name__)


class OtherRank(Ranks):
    """This rank, as its runner sees it."""

    def __init__(self, setup: RankSetup, pipe: Connection) -> None:
        self.shard = Shard(setup.rank, setup.size)
        self.can_be_captured = setup.backend == "nccl"
        self.label = f"rank {setup.rank} of {setup.size}, "
        self._setup, self._pipe = setup, pipe
        self._group: RankGroup | None = None

    def agree_on(self, num_blocks: int) -> int:
        """See Ranks."""
        self._pipe.send_bytes(json.dumps({"num_blocks": num_blocks}).encode())
        agreed: int = json.loads(self._pipe.recv_bytes())["num_blocks"]
        self._group = RankGroup(self._setup.backend, open_store(self._setup.store_port), self.shard, torch.device(self._setup.device))
        self._group.connect()
        self.all_reduce = self._group.all_reduce
        return agreed

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.abort(self.release_graphs)


def serve(pipe: Connection) -> None:
    """Be a rank until `pipe` closes."""
    setup = RankSetup(**json.loads(pipe.recv_bytes()))
    level, name = setup.log_level, f"rank {setup.rank}"
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s talker {name}: %(message)s")
    torch.set_num_threads(setup.num_threads)
    ranks, device = OtherRank(setup, pipe), torch.device(setup.device)
    config, dtype = EngineConfig(**setup.config), getattr(torch, setup.dtype)
    try:
        with torch.inference_mode(), on_device(device):
            try:
                runner = TalkerRunner(Checkpoint(config.model_path), config, device=device, dtype=dtype, ranks=ranks)
                runner.capture()
                logger.info("%s", load_summary(runner))
            except Exception as error:
                pipe.send_bytes(json.dumps({"error": type(error).__name__, "message": str(error)}).encode())
                raise
            with runner.on_stream():
                while True:
                    runner.execute(PLAN_WIRE.unpack(pipe.recv_bytes()))
    except (EOFError, ConnectionError):
        logger.info("rank 0 has closed the pipe")
    finally:
        ranks.close()


if __name__ == "__main__":
    run_child(serve, "a tensor parallel rank")
