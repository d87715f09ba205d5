"""Time what speculation inside a frame could win at most, on one GPU.

    python scripts/bench_drafts.py --sizes 1.7b --batches 1 8

A frame takes 15 passes of the code predictor. With drafts (count_drafts.py) it takes fewer, but each checks more rows and reads more
heads. This script times both with the project's own kernels in CUDA graphs. The frame with drafts does that work with none of the
bookkeeping: every pass accepts as many drafts as the next, nothing reads on the device where a pass begins, and passes that are left
over cost nothing. So a real one takes longer. "no-ops" adds them: the launches of the passes that are left over, which a graph of a fixed
length must hold, each as a kernel that adds one number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

import torch

from benching.arguments import HelpFormatter, add_checkpoints
from benching.measuring import command, machine, random_checkpoint, timed, write_results
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.kernels.linear_small import Norm, linear_small
from engine_lib.kernels.predictor_attention import predictor_attention
from engine_lib.kernels.sampler_kernel import Embedding, sample_codes
from engine_lib.layers.fused import forward_fused
from engine_lib.talker.device.code_predictor import CodePredictor
from engine_lib.talker.device.graphs import CapturedFunction
from engine_lib.talker.device.state import SlotState
from engine_lib.talker.device.worker import TalkerWorker

REPEATS = 50
LAUNCHES_A_LAYER = 5  # of the fused forward for few rows


class DraftedPasses:
    """The work of the code predictor for one frame with drafts; its codes mean nothing."""

    def __init__(self, predictor: CodePredictor, state: SlotState, slots: torch.Tensor, drafts: int) -> None:
        """
        Args:
            slots: [batch] int64.
            drafts: that a pass makes, and the next one checks: 1 or 3.
        """
        self._predictor, self._state, self._slots, self._drafts = predictor, state, slots, drafts
        shape, device = predictor.transformer.shape, slots.device
        self._groups, self._width = predictor.num_code_groups, shape.hidden_size
        self._norm = Norm(predictor.transformer.final_norm, shape.rms_norm_eps)
        dtype = predictor.heads.dtype
        cache = (shape.num_hidden_layers, 2, len(slots), shape.num_key_value_heads, self._groups, shape.head_dim)
        self._cache = torch.zeros(cache, dtype=dtype, device=device)
        self.first_rows = torch.zeros(len(slots) * 2, self._width, dtype=dtype, device=device)
        sampled = len(slots) * (1 + drafts) ** 2  # a code of each row, and drafts behind each, because any of them may be the last accepted
        self._codes = torch.zeros(sampled, self._groups, dtype=torch.int64, device=device)

    def run(self, passes: int) -> torch.Tensor:
        """Passes of 2 rows, then of 1 + drafts rows a stream."""
        rows, position = 1 + self._drafts, 0
        x = self.first_rows.clone()
        for number in range(passes):
            x = self._pass(x, position)
            position = min(2 + number * (self._groups - 2) // max(passes - 1, 1), self._groups - rows)
        return x

    def launches(self, passes: int) -> int:
        """Kernels of `passes` passes."""
        return passes * (self._predictor.transformer.shape.num_hidden_layers * LAUNCHES_A_LAYER + 2)

    def _pass(self, x: torch.Tensor, position: int) -> torch.Tensor:
        predictor, batch = self._predictor, len(self._slots)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            weights, eps = predictor.transformer.layers[layer], predictor.transformer.eps
            return predictor_attention(qkv, weights.q_norm, weights.k_norm, eps, predictor.cos, predictor.sin, self._cache[layer], position)

        y = forward_fused(predictor.transformer, x, attend)
        new = len(x) // batch
        first = min(position, len(predictor.heads) - (new + self._drafts))
        heads = predictor.heads[first : first + new + self._drafts].flatten(0, 1)
        vocab = predictor.heads.shape[1]
        logits = linear_small(y, heads, norm=self._norm).view(-1, vocab)[: batch * new * (1 + self._drafts)]
        x = logits.new_empty(len(logits), self._width)
        embedding = Embedding(predictor.code_embeddings[first + 1], x)
        slots = self._slots.repeat_interleave(len(logits) // batch)
        sample_codes(logits, 1 + first, slots, self._state.rest, self._state, self._codes[: len(logits)], embedding=embedding)
        return x[: batch * (1 + self._drafts)]


def measure(worker: TalkerWorker, batch: int, drafts: int, passes: int) -> dict[str, object]:
    """Milliseconds of a frame, and of the code predictor's passes, without drafts and with them."""
    device, predictor = worker.device, worker.model.code_predictor
    slots = torch.full((batch,), worker.scratch_slot, device=device)
    drafted, width, nothing = DraftedPasses(predictor, worker.state, slots, drafts), worker.table_width, torch.zeros(1, device=device)
    usual_passes = predictor.num_code_groups - 1

    def with_drafts(slots: torch.Tensor) -> torch.Tensor:
        worker.forward.decode(slots, width)
        return drafted.run(passes)

    def with_no_ops(slots: torch.Tensor) -> torch.Tensor:
        with_drafts(slots)
        for _ in range(drafted.launches(usual_passes - passes)):
            nothing.add_(1)
        return nothing

    functions = {
        "frame_ms": lambda slots: worker.step(slots, width),
        "talker_ms": lambda slots: worker.forward.decode(slots, width),
        "drafted_ms": with_drafts,
        "no_ops_ms": with_no_ops,
    }
    times = {name: _milliseconds(CapturedFunction(function, slots, torch.cuda.graph_pool_handle())) for name, function in functions.items()}
    return {"batch": batch, "drafts": drafts, "passes": passes, **times}


def _milliseconds(captured: CapturedFunction) -> float:
    for _ in range(5):
        captured.replay()
    return statistics.median(timed(captured.replay)[0] for _ in range(REPEATS))


@torch.inference_mode()
def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1.7b"], choices=["tiny", "0.6b", "1.7b"], help="random checkpoints to measure")
    add_checkpoints(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="streams of a frame")
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 3], choices=[1, 3], help="that a pass makes")
    parser.add_argument(
        "--passes", type=int, nargs="+", default=[8, 10, 11, 12], help="of a frame with drafts; count_drafts.py counts them"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    print("command:", command())
    results: list[dict[str, object]] = []
    for size in arguments.sizes:
        folder = random_checkpoint(arguments.checkpoints, size)
        config = EngineConfig(model_path=str(folder), device="cuda", enforce_eager=True, max_num_seqs=max(arguments.batches))
        worker = TalkerWorker(Checkpoint(folder), config, device=torch.device("cuda:0"), dtype=torch.bfloat16)
        print(f"\n{machine()}; {folder.name}; ms a frame, and beside one without drafts")
        print(f"{'streams':>7} {'drafts':>6} {'passes':>6} {'without':>8} {'talker':>7} {'with':>7} {'x':>6} {'no-ops':>7} {'x':>6}")
        with worker.on_stream():
            for batch in arguments.batches:
                for drafts in arguments.drafts:
                    for passes in arguments.passes:
                        point = measure(worker, batch, drafts, passes)
                        frame, talker, drafted, no_ops = (
                            float(str(point[f"{name}_ms"])) for name in ("frame", "talker", "drafted", "no_ops")
                        )
                        print(
                            f"{batch:>7} {drafts:>6} {passes:>6} {frame:>8.3f} {talker:>7.3f} {drafted:>7.3f} {drafted / frame:>6.3f}"
                            f" {no_ops:>7.3f} {no_ops / frame:>6.3f}",
                            flush=True,
                        )
                        results.append({"checkpoint": folder.name, **point})
    if arguments.output:
        write_results(arguments.output, results)


if __name__ == "__main__":
    main()
