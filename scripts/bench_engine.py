"""Measure the talker on one GPU: ms per frame by batch, prefill, first codes, host time.

    python scripts/bench_engine.py --eager --peers --output bench_engine.json --plot docs/talker.png

Steps run as CUDA graphs; --eager also times them kernel by kernel. Weights are random (written once into --checkpoints), because
speed does not depend on them; --model takes a real checkpoint. Every figure is shown with its floor: the bytes of weights and
cache that one frame must read, at --bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

import numpy as np
import torch

from benching.arguments import HelpFormatter, add_checkpoints, add_engine_options, require_matplotlib
from benching.engine_peers import comparisons, measure_peers
from benching.measuring import command, machine, random_checkpoint, random_prompt, timed, wait, write_results
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.delivery import Delivery, Timestamps
from engine_lib.devices import resolve_device
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.speech.alignment_file import ALIGNMENT_FILE
from engine_lib.talker.device.graphs import CapturedFunction
from engine_lib.talker.device.prefill_layout import PrefillLayout
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request, RequestListener
from engine_lib.talker.sequence import Sequence

CONTEXT_ROWS = 64  # rows in the cache before the timed steps: a sentence's prompt


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=["0.6b", "1.7b"], choices=["tiny", "0.6b", "1.7b"], help="random checkpoints to measure"
    )
    parser.add_argument("--model", help="measure this checkpoint folder instead")
    add_checkpoints(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the talker's weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16, 32, 64], help="streams of a frame step")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 64, 256], help="prompt rows of the timed prefills")
    parser.add_argument("--frames", type=int, default=60, help="timed frames of each batch")
    parser.add_argument("--eager", action="store_true", help="also time the same step launched kernel by kernel")
    parser.add_argument("--bandwidth", type=float, default=4.2e12, help="bytes a second the memory moves (default: one H200, measured)")
    add_engine_options(parser)
    parser.add_argument(
        "--timestamps",
        action="store_true",
        help="also time frames with the scores for times of words (of two heads, unless alignment.json names some)",
    )
    parser.add_argument("--peers", action="store_true", help="also time faster-qwen3-tts and qwen-tts if they are installed")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON", help="interpreter of an environment with the peers")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the frame times into this file; needs matplotlib (the extra `bench`)")
    arguments = parser.parse_args()
    require_matplotlib(parser, arguments)

    print("command:", command())
    results: list[dict[str, object]] = []
    for folder in [Path(arguments.model)] if arguments.model else [random_checkpoint(arguments.checkpoints, s) for s in arguments.sizes]:
        with tempfile.TemporaryDirectory() as linked:
            measured = _with_heads(folder, Path(linked, folder.name)) if arguments.timestamps else folder
            for eager in (False, True) if arguments.eager else (False,):
                results += measure(measured, eager, arguments)
        if arguments.peers:
            device = str(resolve_device(arguments.device))
            results += measure_peers(folder, arguments.batches, arguments.frames, device=device, python=arguments.peers_python)
    for line in comparisons(results):
        print(line)
    if arguments.output:
        write_results(arguments.output, results)
    if arguments.plot:
        from benching.engine_plot import plot

        plot(results, machine(), arguments.plot)


def measure(folder: Path, eager: bool, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All figures of one checkpoint."""
    options: dict[str, Any] = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "enforce_eager": eager,
        "max_num_seqs": max(arguments.batches),
        "codec_slots": max(arguments.batches),
        "max_model_len": 2048,
        "enable_prefix_caching": False,  # prompts here are alike, and are to be computed
    }
    config = EngineConfig(model_path=str(folder), **options | dict(arguments.option))
    started = time.perf_counter()
    engine = TalkerEngine(Checkpoint(folder), config)
    with torch.inference_mode(), engine.worker.on_stream():
        wait()
        mode = "eager" if eager or engine.worker.graphs is None else "graph"
        print(f"\n{machine()}; {folder.name}, {engine.worker.dtype}, {mode}; ready in {time.perf_counter() - started:.1f} s")
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
            if arguments.timestamps:
                timed_words, _ = _time_decode(engine, batch, arguments.frames, Timestamps.WORD)
                print(f"{'words':>6} {timed_words:>9.3f} {'':>9} {timed_words / milliseconds:>6.3f} x without", flush=True)
                results[-1]["words_ms"] = timed_words
        print(f"{'prompt rows':>12} {'prefill ms':>11} {'to first codes ms':>18}")
        for rows in arguments.prompts:
            prefill, first_codes = _time_prefill(engine, rows), _time_first_codes(engine, rows)
            print(f"{rows:>12} {prefill:>11.3f} {first_codes:>18.3f}", flush=True)
            results.append(
                {"checkpoint": folder.name, "mode": mode, "prompt_rows": rows, "prefill_ms": prefill, "first_codes_ms": first_codes}
            )
    engine.shutdown()
    return results


def _prompt(engine: TalkerEngine, rows: int) -> Prompt:
    return random_prompt(engine.checkpoint, rows, np.random.default_rng(0))


def _with_heads(folder: Path, linked: Path) -> Path:
    """A checkpoint whose words can be timed: `folder` itself if it names heads for that, or else a folder of links to its files."""
    if (folder / ALIGNMENT_FILE).exists():
        return folder
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file.resolve())
    layer = Checkpoint(folder).config.talker.shape.num_hidden_layers // 2
    heads = {"heads": [[layer, 0], [layer, 1]], "offset": 0.0, "lead": 0.0, "within_100_ms": 0.0}
    (linked / ALIGNMENT_FILE).write_text(json.dumps(heads))
    return linked


def _sequence(engine: TalkerEngine, number: int, rows: int, timestamps: Timestamps = Timestamps.NONE) -> Sequence:
    delivery = Delivery((8,), timestamps=timestamps)
    request = Request(str(number), _prompt(engine, rows), SamplingParams(seed=number, max_frames=1500), delivery)
    return Sequence(request, RequestListener(), 1500)


def _admit(engine: TalkerEngine, batch: int, rows: int, timestamps: Timestamps = Timestamps.NONE) -> list[Sequence]:
    """Sequences with their prompts prefilled and their first frame launched."""
    sequences = [_sequence(engine, number, rows, timestamps) for number in range(batch)]
    for sequence in sequences:
        engine.scheduler.add(sequence)
    while engine.scheduler.waiting or any(sequence.num_launched_frames == 0 for sequence in sequences):
        launch(engine)
    return sequences


def launch(engine: TalkerEngine) -> None:
    """One step of the engine thread. Its results are not read, so no stream ends; the next launch comes after it."""
    for frames in engine.launch(engine.scheduler.schedule()):
        if frames.result.copied is not None:
            frames.result.copied.wait()


def _release(engine: TalkerEngine, sequences: list[Sequence]) -> None:
    for sequence in sequences:
        engine.scheduler.release(sequence)


def _time_decode(engine: TalkerEngine, batch: int, frames: int, timestamps: Timestamps = Timestamps.NONE) -> tuple[float, float]:
    """Medians: milliseconds of GPU time per frame, and microseconds of host time to launch one."""
    sequences = _admit(engine, batch, CONTEXT_ROWS, timestamps)
    for _ in range(5):
        launch(engine)
    times = [timed(lambda: launch(engine)) for _ in range(frames)]
    _release(engine, sequences)
    return statistics.median(device for device, _ in times), statistics.median(host for _, host in times) * 1e3


def _time_first_codes(engine: TalkerEngine, rows: int) -> float:
    """Milliseconds from a prompt on the host to its first 16 codes on the device."""

    def once() -> None:
        _release(engine, _admit(engine, 1, rows))

    for _ in range(3):
        once()
    return statistics.median(timed(once)[0] for _ in range(10))


def _time_prefill(engine: TalkerEngine, rows: int) -> float:
    """Milliseconds of a prompt's pass through the talker's layers alone, launched as the engine launches its steps.

    NaN with tensor parallelism, because no plan makes the other ranks do half a step.
    """
    worker = engine.worker
    if worker.ranks.all_reduce is not None:
        return float("nan")
    sequence = _sequence(engine, 0, rows)
    engine.scheduler.block_manager.grow(sequence.block_table, rows)
    table, groups = sequence.block_table, worker.talker_config.num_code_groups
    layout = PrefillLayout(rows, sequences=1, sampled=1, width=len(table), num_code_groups=groups)
    packed = worker.prefill_buffer(layout)
    packed.add(*sequence.rows(0, rows, 0), start=0, block_table=table, slot=worker.scratch_slot, is_sampled=True)
    inputs = packed.finish()
    buffer = torch.from_numpy(inputs).to(worker.device)

    def once() -> object:
        return worker.forward.prefill(layout.unpack(buffer))

    if worker.graphs is not None:
        captured = CapturedFunction(lambda buffer: worker.forward.prefill(layout.unpack(buffer)), buffer, torch.cuda.graph_pool_handle())
        once = lambda: captured.replay(inputs)  # noqa: E731
    for _ in range(3):
        once()
    milliseconds = statistics.median(timed(once)[0] for _ in range(10))
    engine.scheduler.block_manager.free(sequence.block_table)
    return milliseconds


def _frame_bytes(engine: TalkerEngine, batch: int) -> int:
    """Bytes that one frame must read: talker, head and cache once, the predictor's layers 15 times and each of its heads once."""
    model, cache = engine.worker.model, engine.worker.kv_cache
    predictor = model.code_predictor
    row = cache.shape[0] * 2 * cache.shape[4] * cache.shape[5] * cache.element_size()
    steps = engine.checkpoint.config.talker.num_code_groups - 1
    weights = model.transformer.nbytes + model.head.nbytes + steps * predictor.transformer.nbytes + predictor.heads.nbytes
    return weights + batch * CONTEXT_ROWS * row


if __name__ == "__main__":
    main()
