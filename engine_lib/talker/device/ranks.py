"""Ranks: how one worker of a talker on several devices sees the others.

Every layer of the talker is cut into equal shards (Shoeybi et al. 2019, "Megatron-LM"): q, k, v and gate, up by output rows,
the output and down products by input columns, so that a layer needs two all_reduces and a rank caches the keys and values of
its own heads only. Embeddings, heads and the code predictor are whole on every rank. Because random numbers are
counter-based, every rank samples the same codes and keeps the same state; rank 0 only broadcasts its plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from engine_lib.checkpoint import WHOLE, Shard
from engine_lib.errors import Qwen3TTSError
from engine_lib.talker.device.plan import Plan

AllReduce = Callable[[torch.Tensor], torch.Tensor]


class RankError(Qwen3TTSError):
    """A rank of the talker has ended, so no step can finish."""


class Ranks:
    """The only rank. The subclasses rank_zero.RankZero and other_rank.OtherRank are ranks of several.

    Attributes:
        shard: part of the sharded weights this rank holds.
        all_reduce: adds up a tensor over ranks, in place; None if there is only one.
        can_be_captured: whether CUDA graphs can hold `all_reduce`.
        label: for the log.
        reads_results: whether the host of this rank reads the sampled codes.
        release_graphs: destroys the CUDA graphs that hold `all_reduce`; set after a capture.
    """

    shard: Shard = WHOLE
    all_reduce: AllReduce | None = None
    can_be_captured: bool = True
    label: str = ""
    reads_results: bool = True
    release_graphs: Callable[[], None] = staticmethod(lambda: None)

    def agree_on(self, num_blocks: int) -> int:
        """Return the KV blocks that all ranks have room for. Call it once, when the weights are loaded; then `all_reduce` works."""
        return num_blocks

    def broadcast(self, plan: Plan) -> None:
        """Let the other ranks execute `plan` too. On a rank other than 0 this does nothing.

        Raises:
            RankError: another rank has ended.
        """

    def check(self) -> None:
        """Raise RankError if another rank has ended."""

    def wait_for(self, event: torch.cuda.Event) -> None:
        """Wait until the device has reached `event`.

        Raises:
            RankError: it never will, because another rank has ended.
        """
        event.synchronize()

    def finish(self) -> None:
        """Wait until the device has finished the current stream, which it cannot do without the other ranks.

        Raises:
            RankError: another rank has ended before that.
        """

    def watch(self, on_failure: Callable[[], None]) -> None:
        """Call `on_failure`, on another thread, when another rank ends."""

    def close(self) -> None:
        """End the other ranks."""

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close if the body raises; if the cause is the end of another rank, raise RankError."""
        try:
            yield
        except Qwen3TTSError:
            self.close()
            raise
        except BaseException:
            self.close()
            self.check()
            raise
