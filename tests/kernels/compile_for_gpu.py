"""Compiles every kernel as the engine launches it, for a GPU that this machine need not have.

    PYTHONPATH=.:scripts:tests python -m kernels.compile_for_gpu                   # by Triton's front end: half a minute
    PYTHONPATH=.:scripts:tests python -m kernels.compile_for_gpu --machine-code    # minutes; prints registers, spills, shared memory

The engine's own code launches them: the talker and the codec of the published sizes in all sizes of their CUDA graphs, and a talker
with sizes that divide nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec import fused_decoder
from engine_lib.codec import graphs as codec_graphs
from engine_lib.codec.arena import StateArena
from engine_lib.codec.decoder import CodecDecoder
from engine_lib.codec.plan import Plan
from engine_lib.kernels.causal_conv import Snake, causal_conv
from engine_lib.kernels.linear_fp8 import linear_fp8
from engine_lib.kernels.linear_small import Norm, gate_up_small, linear_small
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.kernels.paged_cache import PagedCache
from engine_lib.kernels.prefill_attention import prefill_attention
from engine_lib.kernels.sampler_kernel import Embedding, sample_codes
from engine_lib.kernels.snake import snake_beta
from engine_lib.kernels.tiles import LinearTile
from engine_lib.ops.fp8 import CODES, Fp8Weight
from engine_lib.talker.device import graphs as talker_graphs
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.fused_forward import FusedForward
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.prefill_layout import MAX_PREFILL_SEQUENCES, PROMPT_ROWS_IN_STEPS, PROMPTS_IN_STEPS, PrefillLayout
from engine_lib.talker.device.state import SlotTable
from engine_lib.talker.device.text_scores import TextScores
from kernels.gpu_compiler import ADA, AMPERE, HOPPER, Compiled, GpuCompiler
from make_checkpoint import write_configs
from random_checkpoint.configs import build_configs
from random_checkpoint.tokenizer import BPE_VOCAB

META = torch.device("meta")
SLOTS, ROWS, BLOCK_SIZE = 64, 4096, 16  # the defaults of EngineConfig
ONE_LAYER = {
    "talker_config.num_hidden_layers": 1,
    "talker_config.code_predictor_config.num_hidden_layers": 1,
    "speech_tokenizer.decoder_config.num_hidden_layers": 1,
}
# No width is a multiple of a tile, no number of heads a power of two.
ODD = {
    "talker_config.hidden_size": 100,
    "talker_config.intermediate_size": 180,
    "talker_config.num_attention_heads": 6,
    "talker_config.head_dim": 24,
    "talker_config.code_predictor_config.hidden_size": 52,
    "talker_config.code_predictor_config.intermediate_size": 100,
    "talker_config.code_predictor_config.num_attention_heads": 3,
    "talker_config.code_predictor_config.num_key_value_heads": 1,
    "talker_config.code_predictor_config.head_dim": 24,
    "tts_model_size": "1b7",
    "speech_tokenizer.decoder_config.upsample_rates": [8, 60],
}


class NoWeights:
    """In the place of Weights: tensors of the right shape, without values."""

    def take(self, name: str, shape: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return empty(*shape, dtype=dtype)

    def take_shard(self, name: str, shape: Any, shard: object, *, dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return self.take(name, shape, dtype=dtype, device=device)


class NoCheckpoint(Checkpoint):
    """The configs of a checkpoint, without its weights."""

    def weights(self) -> Any:
        return NoWeights()

    def speech_tokenizer_weights(self) -> Any:
        return NoWeights()


def checkpoint(size: str, overrides: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint with one layer in each transformer; more would launch the same kernels again."""
    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), build_configs(size, "custom_voice", ONE_LAYER | (overrides or {}), bpe_vocab=BPE_VOCAB))
        return NoCheckpoint(folder)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def integers(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int64)


def codes_of(weight: Any) -> Fp8Weight:
    return Fp8Weight(empty(*weight.shape, dtype=CODES), empty(len(weight)))


def talker(model: Checkpoint, dtype: torch.dtype, *, fp8: bool = False) -> None:
    """Decode, with prompts too, prefill and first frames in every size that is captured."""
    config = model.config.talker
    weights = TalkerModel(model, dtype=dtype, device=META, max_positions=ROWS, num_speaker_rows=SLOTS)
    for layer in (*weights.transformer.layers, *weights.code_predictor.transformer.layers) if fp8 else ():
        for name, weight in vars(layer).items():
            setattr(layer, name, weight if "norm" in name else codes_of(weight))
    groups, width, shape = config.num_code_groups, ROWS // BLOCK_SIZE, weights.transformer.shape
    table = SlotTable(
        SLOTS + 1, num_code_groups=groups, text_columns=ROWS, pad_text_id=0, width=width, vocab_size=config.vocab_size, device=META
    )
    kv_shape = (shape.num_hidden_layers, 2, 100, BLOCK_SIZE, shape.num_key_value_heads, shape.head_dim)
    kv_cache = empty(*kv_shape, dtype=dtype)
    forward = FusedForward(weights, kv_cache, table.state, FirstCodebookRules.of(config, META))
    scores = TextScores(((0, 0), (0, 1)), shape.num_attention_heads, table.state, kv_cache)
    for batch in talker_graphs.BATCH_BUCKETS:
        slots = integers(batch)
        forward.sample(slots, forward.decode(slots, width, scores.of_step(slots, scores.out.shape[2])))
    for rows in PROMPT_ROWS_IN_STEPS:
        layout = PrefillLayout(rows, PROMPTS_IN_STEPS + 1, PROMPTS_IN_STEPS, width, groups)
        forward.decode(integers(SLOTS), width, None, layout.unpack(integers(layout.size)))
    for rows in talker_graphs.PREFILL_ROW_BUCKETS:
        for sequences in (*talker_graphs.PREFILL_SEQUENCE_BUCKETS, MAX_PREFILL_SEQUENCES):
            layout = PrefillLayout(rows, sequences + 1, sequences, width, groups)
            forward.prefill(layout.unpack(integers(layout.size)))


def codec(model: Checkpoint, dtype: torch.dtype, *, sizes: Sequence[int] = codec_graphs.FRAME_BUCKETS) -> None:
    """Steps of all `sizes`, in frames, that are captured."""
    decoder = CodecDecoder(model.speech_tokenizer_weights(), model.config.codec, dtype=dtype, device=META)
    decode = fused_decoder.FusedDecoder(decoder, StateArena(decoder.streaming_layers(), SLOTS, META))
    for frames in sizes:
        shape = min(frames, SLOTS) + 1, frames
        decode(Plan.of(integers(Plan.size(shape, model.config.codec.num_quantizers)), shape))


def everything_at_once(dtype: torch.dtype) -> None:
    """All options of a kernel together, which the engine need not use: their names must not meet. Loops are longer than their stages."""
    all_of_a_product(dtype)
    all_of_a_convolution(dtype)
    all_of_a_sample(dtype)
    snake_beta(empty(2, 100, 96, dtype=dtype), empty(96), empty(96))


def all_of_a_product(dtype: torch.dtype) -> None:
    tile = LinearTile(16, num_stages=1)
    # blocks of the weight are whole, or not; programs are of 16, 64 and 32 rows
    for rows, out, width in ((12, 1040, 2048), (40, 1040, 2048), (20, 1038, 2044)):
        norm = Norm(empty(width, dtype=dtype), 1e-6)
        for weight in (empty(out, width, dtype=dtype), codes_of(empty(out, width))):
            x, normed = empty(rows, width, dtype=dtype), empty(rows, width, dtype=dtype)
            residual, bias = empty(rows, out, dtype=dtype), empty(out, dtype=dtype)
            linear_small(x, weight, norm=norm, normed=normed, bias=bias, residual=residual, out=residual, tile=tile)
            gate_up_small(x, weight, norm=norm, tile=tile)


def all_of_a_convolution(dtype: torch.dtype) -> None:
    streams, time, taps, channels = 3, 24, 7, 96
    snake = Snake(empty(48), empty(48))
    for inner in (64, 72):  # blocks of the input are whole, or not
        weight, bias = empty(channels, taps, inner, dtype=dtype), empty(channels, dtype=dtype)
        frames, past = Frames(integers(streams + 2), integers(streams * time)), (taps - 1) * inner
        x, y = Packed(empty(streams * (time * inner + past), dtype=dtype), past), Packed(empty(streams * time * channels, dtype=dtype))
        causal_conv(x, weight, bias, frames, 1, gelu=True, residual=y, out=y, snake=snake, snake_out=y)


def all_of_a_sample(dtype: torch.dtype) -> None:
    batch, vocab, groups, width = 4, 3072, 16, 2048
    table = SlotTable(SLOTS + 1, num_code_groups=groups, text_columns=1, pad_text_id=0, width=1, vocab_size=vocab, device=META)
    rules = FirstCodebookRules(empty(vocab, dtype=torch.bool), eos=0, min_frames=2)
    embedding = Embedding(empty(vocab, width, dtype=dtype), empty(batch, width, dtype=dtype))
    logits, slots, codes = empty(batch, vocab, dtype=dtype), integers(batch), integers(batch, groups)
    sample_codes(logits, 0, slots, table.state.first, table.state, codes, first=rules, embedding=embedding, advance=True)


def largest_programs() -> None:
    """The launches with most shared memory."""
    for dtype in (torch.float32, torch.bfloat16):
        linear_fp8(empty(256, 2048, dtype=dtype), codes_of(empty(6144, 2048)))
        keys = empty(9, BLOCK_SIZE, 8, 128, dtype=dtype)
        cache = PagedCache(keys, keys, empty(2, 4, dtype=torch.int32))
        prefill_attention(empty(64, 16, 128, dtype=dtype), cache, empty(2, dtype=torch.int32), empty(3, dtype=torch.int32))
    x, weight = empty(64, 2048, dtype=torch.bfloat16), empty(2048, 2048, dtype=torch.bfloat16)
    linear_small(x, weight, residual=x, tile=LinearTile(32, num_stages=1))
    x, weight, out = (empty(*shape, dtype=torch.bfloat16) for shape in ((16 * 2048,), (1024, 1, 2048), (16 * 1024,)))
    causal_conv(Packed(x), weight, out[:1024], Frames(integers(3), integers(16)), 1, out=Packed(out))


@dataclass(frozen=True)
class Form:
    """Launches that are compiled for a GPU of `capability`, `to_machine_code` or by the front end."""

    capability: int
    launches: Callable[[], None]
    to_machine_code: bool = False


def forms(to_machine_code: bool) -> dict[str, Form]:
    """All that is compiled, by name; to machine code also for the GPUs with the least shared memory."""
    small, large, odd = checkpoint("0.6b"), checkpoint("1.7b"), checkpoint("tiny", ODD)
    bfloat16, float32 = torch.bfloat16, torch.float32
    of_hopper = {
        "the 1.7B talker": partial(talker, large, bfloat16),
        "the 1.7B talker in FP8": partial(talker, large, bfloat16, fp8=True),
        "the 0.6B talker": partial(talker, small, bfloat16),
        "the codec": partial(codec, large, bfloat16),
        "everything at once": partial(everything_at_once, bfloat16),
        "everything at once in float32": partial(everything_at_once, float32),
    }
    of_ampere = {
        "a talker of odd sizes in float32": partial(talker, odd, float32),
        "a small codec in float32": partial(codec, odd, float32, sizes=[16]),
    }
    of_ada = of_hopper if to_machine_code else {}
    return (
        {name: Form(HOPPER, launches, to_machine_code) for name, launches in of_hopper.items()}
        | {f"{name}, on Ampere": Form(AMPERE, launches, to_machine_code) for name, launches in of_ampere.items()}
        | {f"{name}, on Ada": Form(ADA, launches, to_machine_code) for name, launches in of_ada.items()}
        | {"the largest programs, on Ada": Form(ADA, largest_programs, to_machine_code=True)}
    )


def resources(kernel: Compiled) -> tuple[int, int, int]:
    """Registers a thread, bytes of its stack, which holds registers that are spilled, and bytes of shared memory a program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.result.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    return registers, stack, kernel.result.metadata.shared


def main() -> None:
    """Compile, print what is wrong, and exit with 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--machine-code", action="store_true", help="go on to machine code, and print what each kernel takes of a GPU")
    with_code = parser.parse_args().machine_code
    compiler = GpuCompiler()
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        triton.knobs.cache.dir = cache
        for name, form in forms(with_code).items():
            compiler.form, compiler.capability, compiler.machine_code = name, form.capability, form.to_machine_code
            form.launches()
    if with_code:
        print("registers stack shared")
        for kernel in compiler.compiled:
            registers, stack, shared = resources(kernel)
            print(f"{registers:9} {stack:5} {shared:6} {kernel.kernel} of {kernel.form}: {kernel.constants}")
    wrong = [f"{launch}: {why}" for launch, why in compiler.failures.items()]
    wrong += [f"never compiled: {statement}" for statement in compiler.never_compiled()]
    print("\n".join([*wrong, f"{len(compiler.compiled)} kernels compiled"]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
