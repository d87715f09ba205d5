"""Ranks: what one talker on several devices has in common, as each of its runners sees it.

Every layer of the talker is cut into equal shards (Shoeybi et al. 2019, "Megatron-LM"): q, k, v and gate, up by output rows,
the output and down products by input columns, so that a layer needs two sums over ranks and a rank caches the keys and values
of its own heads only. Embeddings, heads and the code predictor are whole on every rank. Since draws are counter-based, every
rank draws the same codes and keeps the same state; all it must be told is the plan of each step.
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
    """A rank of the talker has ended, so that no step can."""


class Ranks:
    """One rank that is all there is; tensor_parallel.RankZero and tensor_parallel_rank.OtherRank are ranks of several.

    Attributes:
        shard: part of the sharded weights this rank holds.
        all_reduce: adds up a tensor over ranks, in place; None where there is one rank.
        can_be_captured: whether CUDA graphs can hold `all_reduce`.
        label: for the log.
        reads_results: whether the host of this rank reads the sampled codes.
        release_graphs: destroys the CUDA graphs that hold `all_reduce`; set by whoever captures some.
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
        """Let the other ranks do `plan` too. Only rank 0 knows requests and has something to tell.

        Raises:
            RankError: another rank has ended.
        """

    def check(self) -> None:
        """Raise RankError if another rank has ended."""

    def wait_for(self, event: torch.cuda.Event) -> None:
        """Wait until the device has reached `event`.

        Raises:
            RankError: it will not, because another rank has ended.
        """
        event.synchronize()

    def finish(self) -> None:
        """Wait until the device has done what it was told on the current stream; without the others it never would.

        Raises:
            RankError: another rank has ended before that.
        """

    def watch(self, on_failure: Callable[[], None]) -> None:
        """Call `on_failure`, on another thread, when another rank ends."""

    def close(self) -> None:
        """End the other ranks."""

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close when the body raises; what broke because another rank has ended is raised as RankError."""
        try:
            yield
        except Qwen3TTSError:
            self.close()
            raise
        except BaseException:
            self.close()
            self.check()
            raise
