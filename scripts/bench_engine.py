"""Measure the talker on one GPU: milliseconds per frame by batch, eager and as CUDA graphs, prefill, first codes, host time.

    python scripts/bench_engine.py --sizes 0.6b 1.7b --output bench_engine.json

Weights are random (written once into --checkpoints), because speed does not depend on them; --model takes a real checkpoint.
Every figure stands beside its floor: the bytes of weights and cache one frame must read, at --bandwidth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from benchmarking import command, machine, random_checkpoint, timed, wait, write_results

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.prompt import NO_ID, Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request

CONTEXT_ROWS = 64  # rows in the cache before the timed steps: a sentence's prompt


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=["0.6b", "1.7b"], choices=["tiny", "0.6b", "1.7b"], help="random checkpoints to measure"
    )
    parser.add_argument("--model", help="measure this checkpoint folder instead")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="where random checkpoints are written and found again"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16, 32, 64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 64, 256], help="prompt rows whose prefill is timed")
    parser.add_argument("--frames", type=int, default=60, help="timed frames of each batch")
    parser.add_argument("--eager", action="store_true", help="also time the same step launched kernel by kernel")
    parser.add_argument("--bandwidth", type=float, default=4.2e12, help="bytes a second the memory moves (default: one H200, measured)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    print("command:", command())
    results = []
    for folder in [Path(arguments.model)] if arguments.model else [random_checkpoint(arguments.checkpoints, s) for s in arguments.sizes]:
        for eager in (False, True) if arguments.eager else (False,):
            results += measure(folder, eager, arguments)
    if arguments.output:
        write_results(arguments.output, results)


def measure(folder: Path, eager: bool, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All figures of one checkpoint."""
    config = EngineConfig(
        model_path=str(folder),
        device=arguments.device,
        dtype=arguments.dtype,
        enforce_eager=eager,
        max_num_seqs=max(arguments.batches),
        codec_slots=max(arguments.batches),
        max_model_len=2048,
    )
    started = time.perf_counter()
    engine = TalkerEngine(Checkpoint(folder), config)
    with torch.inference_mode():
        wait()
        mode = "eager" if eager or engine.runner.graphs is None else "graph"
        print(f"\n{machine()}; {folder.name}, {engine.runner.dtype}, {mode}; ready in {time.perf_counter() - started:.1f} s")
        results = []
        print(f"{'batch':>6} {'ms/frame':>9} {'floor ms':>9} {'ratio':>6} {'host us':>8} {'frames/s':>9}")
        for batch in arguments.batches:
            milliseconds, host = _time_decode(engine, batch, arguments.frames)
            floor, rate = _frame_bytes(engine, batch) / arguments.bandwidth * 1e3, batch / milliseconds * 1e3
            print(
                f"{batch:>6} {milliseconds:>9.3f} {floor:>9.3f} {milliseconds / floor:>6.2f} {host:>8.0f} {rate:>9.0f}",
                flush=True,
            )
            results.append(
                {"checkpoint": folder.name, "mode": mode, "batch": batch, "ms": milliseconds, "floor_ms": floor, "host_us": host}
            )
        print(f"{'prompt rows':>12} {'to first codes ms':>18}")
        for rows in arguments.prompts:
            milliseconds = _time_prefill(engine, rows)
            print(f"{rows:>12} {milliseconds:>18.3f}", flush=True)
            results.append({"checkpoint": folder.name, "mode": mode, "prompt_rows": rows, "first_codes_ms": milliseconds})
    return results


def _prompt(engine: TalkerEngine, rows: int) -> Prompt:
    groups = engine.checkpoint.config.talker.num_code_groups
    codes = np.full((rows, groups), NO_ID, np.int32)
    codes[:, 0] = engine.checkpoint.config.talker.codec_pad_id
    return Prompt(np.random.default_rng(0).integers(0, 100, rows, dtype=np.int32), codes, np.empty(0, np.int32), rows)


def _admit(engine: TalkerEngine, batch: int, rows: int) -> list[Request]:
    """Requests whose prompts are in and whose first frame is drawn."""
    requests = [
        Request(str(i), _prompt(engine, rows), SamplingParams(seed=i, max_frames=1500), (8,), lambda chunk: None) for i in range(batch)
    ]
    for request in requests:
        engine.scheduler.add(request)
    while engine.scheduler.waiting or any(request.num_launched_frames == 0 for request in requests):
        launch(engine)
    return requests


def launch(engine: TalkerEngine) -> None:
    """One step of the engine thread, without reading its result."""
    schedule = engine.scheduler.schedule()
    for request in schedule.admitted:
        engine.runner.admit(request)
    engine.runner.update_block_tables(schedule.grown)
    if schedule.prefill:
        engine.runner.prefill(schedule.prefill)
        engine.scheduler.prefilled(schedule.prefill)
    if schedule.decode:
        engine.runner.decode(schedule.decode)
        engine.scheduler.decoded(schedule.decode)


def _release(engine: TalkerEngine, requests: list[Request]) -> None:
    for request in requests:
        engine.scheduler.release(request)


def _time_decode(engine: TalkerEngine, batch: int, frames: int) -> tuple[float, float]:
    """Milliseconds of GPU time a frame, and microseconds of host time to launch one; both medians."""
    requests = _admit(engine, batch, CONTEXT_ROWS)
    for _ in range(5):
        launch(engine)
    times = [timed(lambda: launch(engine)) for _ in range(frames)]
    _release(engine, requests)
    return statistics.median(device for device, _ in times), statistics.median(host for _, host in times) * 1e3


def _time_prefill(engine: TalkerEngine, rows: int) -> float:
    """Milliseconds from a prompt on the host to its first 16 codes on the device."""

    def once() -> None:
        _release(engine, _admit(engine, 1, rows))

    for _ in range(3):
        once()
    return statistics.median(timed(once)[0] for _ in range(10))


def _frame_bytes(engine: TalkerEngine, batch: int) -> int:
    """Bytes one frame must read: talker and head once, the predictor's layers 15 times and each of its heads once, the cache."""
    model = engine.runner.model

    def size(*tensors: torch.Tensor) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    talker = sum(size(*vars(layer).values()) for layer in model.transformer.layers) + size(model.head)
    predictor = sum(size(*vars(layer).values()) for layer in model.code_predictor.transformer.layers)
    cache = engine.runner.kv_cache
    row = cache.shape[0] * 2 * cache.shape[4] * cache.shape[5] * cache.element_size()
    steps = engine.checkpoint.config.talker.num_code_groups - 1
    return talker + steps * predictor + size(model.code_predictor.heads) + batch * CONTEXT_ROWS * row


if __name__ == "__main__":
    main()
