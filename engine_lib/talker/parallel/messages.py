"""The messages by which a rank loads. Plans follow them (device/plan.py)."""

from __future__ import annotations

from typing import Any

from engine_lib.process.loading import LoadFailed
from engine_lib.process.wire import Message, Wire


class LoadRank(Message, frozen=True):
    """The first message to a rank.

    Attributes:
        rank, size: its number, and the number of ranks.
        store_port: port of the store through which ranks find each other.
        backend: nccl or gloo.
        device, dtype: as torch names them.
        num_threads: of torch.
        log_level: as in `logging`.
        config: the fields of an EngineConfig.
    """

    rank: int
    size: int
    store_port: int
    backend: str
    device: str
    dtype: str
    num_threads: int
    log_level: int
    config: dict[str, Any]


class RankLoaded(Message, frozen=True):
    """The weights are in; there is room for so many KV blocks."""

    num_blocks: int


class AgreedBlocks(Message, frozen=True):
    """All ranks have room for so many KV blocks."""

    num_blocks: int


TO_RANK: Wire[LoadRank | AgreedBlocks] = Wire(LoadRank | AgreedBlocks)
FROM_RANK: Wire[RankLoaded | LoadFailed] = Wire(RankLoaded | LoadFailed)
