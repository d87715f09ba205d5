"""Compare the talker's logits under an option with those without it, on the same codes, on the CPU.

    python scripts/compare_logits.py CHECKPOINT --option talker_weights=fp8
    python scripts/compare_logits.py CHECKPOINT --option dtype=bfloat16 --option talker_weights=fp8 --base dtype=bfloat16

The engine without the option speaks sentences with sampled codes. Then both are fed these codes, frame after frame and book after
book, so that every distribution has the same past. For each codebook: the Kullback-Leibler divergence of the distribution with the
option from that without (temperature 1, in nats), and how often the most likely code is the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from benching.arguments import HelpFormatter, add_engine_options
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.layers.transformer import Transformer
from engine_lib.prompt import Prompt, PromptBuilder
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.worker import TalkerWorker
from engine_lib.talker.engine import TalkerEngine
from voice_in_the_box.sentences import Sentences

SENTENCES_SEED = 31
CPU = {"device": "cpu"}
Options = dict[str, str]


def attend_to_the_past(transformer: Transformer, sequences: int, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Run `x` [sequences * rows, hidden] through the layers; each row sees its own sequence up to itself. Normed."""

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(0, (sequences, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(0, 1)

    return transformer.norm(transformer.forward(x, cos, sin, attend))


def logits_of(model: TalkerModel, text_ids: torch.Tensor, codes: torch.Tensor, num_frames: int) -> list[torch.Tensor]:
    """[frames, vocab] float32 of each codebook, for the frames that end the rows `text_ids` [rows] and `codes` [rows, books] int64."""
    rows = len(codes) - 1
    positions = torch.arange(rows)
    x = model.embed(text_ids[:-1], codes[:-1])
    hidden = attend_to_the_past(model.transformer, 1, x, model.cos[positions], model.sin[positions])[-num_frames:]
    frames, predictor = codes[-num_frames:], model.code_predictor
    embedded = [F.embedding(frames[:, book], predictor.code_embeddings[book]) for book in range(predictor.num_code_groups - 1)]
    books = torch.stack([predictor.projected(hidden), *embedded], dim=1)  # [frames, 16, hidden]
    cos, sin = (table.repeat(num_frames, 1) for table in (predictor.cos, predictor.sin))
    out = attend_to_the_past(predictor.transformer, num_frames, books.flatten(0, 1), cos, sin).unflatten(0, (num_frames, -1))
    others = [F.linear(out[:, book], predictor.heads[book - 1]).float() for book in range(1, predictor.num_code_groups)]
    return [model.first_code_logits(hidden), *others]


def inputs_of(prompt: Prompt, frames: npt.NDArray[np.int16], pad_text_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input rows of a prompt and its frames [frames, books]: text ids [rows] and codes [rows, books], int64."""
    text_ids = torch.full((len(prompt) + len(frames),), pad_text_id)
    known = np.concatenate([prompt.text_ids, prompt.trailing_text_ids])[: len(text_ids)]
    text_ids[: len(known)] = torch.from_numpy(known).long()
    return text_ids, torch.cat([torch.from_numpy(prompt.codes), torch.from_numpy(frames)]).long()


def config_of(checkpoint: Checkpoint, options: Options) -> EngineConfig:
    """Options of a small engine on the CPU, with `options`."""
    return EngineConfig.from_options({"model_path": str(checkpoint.path), "max_num_seqs": "1", "max_model_len": "2048"} | options | CPU)


def worker_of(checkpoint: Checkpoint, options: Options) -> TalkerWorker:
    """A talker that decodes nothing; its weights are what counts."""
    return TalkerEngine(checkpoint, config_of(checkpoint, options)).worker


def main() -> int:
    """Read the command line, speak, compare and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder in the published layout")
    add_engine_options(parser)
    add_engine_options(parser, "--base", "of the talker to compare with")
    parser.add_argument("--sentences", type=int, default=20, help="that are spoken and compared")
    parser.add_argument("--seed", type=int, default=0, help="of the first sentence")
    arguments = parser.parse_args()
    if not arguments.option:
        parser.error("--option is missing: what is to be compared, as talker_weights=fp8")
    checkpoint, base = Checkpoint(arguments.checkpoint), dict(arguments.base)
    texts = Sentences(SENTENCES_SEED + arguments.seed).held_out(arguments.sentences)
    voices = sorted(checkpoint.config.talker.speaker_ids)
    speakers = [voices[i % len(voices)] for i in range(len(texts))]
    with Qwen3TTS(checkpoint, config_of(checkpoint, base | {"max_num_seqs": "16"})) as tts:
        spoken = list(tts.generate_codes(texts, speakers, "english", seed=arguments.seed, max_new_tokens=400))
    models = [worker_of(checkpoint, options).model for options in (base, base | dict(arguments.option))]
    builder = PromptBuilder(checkpoint, max_text_length=4000)
    divergences, agreements = [], []
    with torch.inference_mode():
        for text, voice, frames in zip(texts, speakers, spoken, strict=True):
            prompt = builder.build(text=text, voice=voice, language="english", non_streaming_mode=True)
            text_ids, codes = inputs_of(prompt, frames, models[0].tts_pad_token_id)
            before, after = (logits_of(model, text_ids, codes, len(frames)) for model in models)
            pairs = [(F.log_softmax(a, -1), F.log_softmax(b, -1)) for a, b in zip(before, after, strict=True)]
            divergences.append(torch.stack([(a.exp() * (a - b)).sum(-1) for a, b in pairs], dim=1))
            agreements.append(torch.stack([a.argmax(-1) == b.argmax(-1) for a, b in pairs], dim=1))
    divergence, agreement = torch.cat(divergences), torch.cat(agreements).double()
    print(f"{len(texts)} sentences, {len(divergence)} frames; {dict(arguments.option)} against {base or 'no option'}")
    print(f"{'codebook':>10} {'KL mean':>9} {'KL 99 %':>9} {'same top code':>14}")
    for name, books in (*((str(book), slice(book, book + 1)) for book in range(divergence.shape[1])), ("all", slice(None))):
        kl = divergence[:, books].flatten()
        print(f"{name:>10} {kl.mean():>9.5f} {kl.quantile(0.99):>9.5f} {agreement[:, books].mean():>14.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
