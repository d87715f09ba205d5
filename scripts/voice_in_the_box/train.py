"""Train the voice in the box: speech, then codec, then talker and code predictor, then the checkpoint.

    python scripts/voice_in_the_box/train.py RUN                     all of it, about 20 minutes on one GPU
    python scripts/voice_in_the_box/train.py RUN --codec-minutes 0   continue the talker of an earlier call
    python scripts/voice_in_the_box/train.py RUN --smoke             the whole chain at toy size, on a CPU

espeak-ng renders the speech. RUN is a folder: the next call continues from `state/`, `checkpoint/` is shipped, `log.jsonl` and
`curves.png` show the training. Each call renders new speech, so no speech is trained on twice.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benching.arguments import HelpFormatter
from engine_lib.checkpoint_config import CheckpointConfig
from voice_in_the_box import corpus, shapes, talker_training
from voice_in_the_box.codec_training import CodecTrainer
from voice_in_the_box.live_checkpoint import LiveCheckpoint, write_all_but_weights, write_weights
from voice_in_the_box.progress import Progress, plot

SMOKE = {"hours": 0.005, "codec_steps": 3, "decoder_steps": 2, "talker_steps": 4, "codec_batch": 2, "rows": 512, "predicted_frames": 64}


def main() -> None:
    """Read the command line and train."""
    arguments = _parser().parse_args()
    if arguments.smoke:
        for name, value in SMOKE.items():
            setattr(arguments, name, value)
    Run(arguments).train()


class Run:
    """One call, from the state of the last call to the checkpoint."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._folder: Path = arguments.run
        self._checkpoint, self._state = self._folder / "checkpoint", self._folder / "state"
        self._state.mkdir(parents=True, exist_ok=True)
        self._configs = shapes.configs(smoke=arguments.smoke)
        write_all_but_weights(self._checkpoint, self._configs)
        self._config = CheckpointConfig.read(self._checkpoint)

    def train(self) -> None:
        """Render, train each part for its time, export."""
        arguments = self._arguments
        piece = len(list(self._state.glob("piece-*")))
        with tempfile.TemporaryDirectory(prefix="voice-", dir=arguments.scratch) as scratch:
            started = time.monotonic()
            seed = arguments.seed + 1_000_000 * (piece + 1)
            corpus.render(Path(scratch), self._checkpoint, arguments.hours, seed, arguments.processes)
            print(f"rendered in {time.monotonic() - started:.0f} s", flush=True)
            device = torch.device(arguments.device)
            speech = corpus.load(Path(scratch), device)
        print(f"{speech.hours:.2f} hours, {len(speech.frames)} utterances, after {time.monotonic() - started:.0f} s", flush=True)
        torch.manual_seed(arguments.seed + piece)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True  # because segments have one shape

        codec = CodecTrainer(self._weights("codec", device), self._config.codec, device)
        for name, network in (("encoder", codec.encoder), ("discriminator", codec.discriminator)):
            if (file := self._state / f"{name}.safetensors").is_file():
                network.load_state_dict(load_file(file))
        codec.train_codec(speech, self._progress("codec"), arguments.codec_batch)
        codec.train_decoder(speech, self._progress("decoder"), arguments.codec_batch)
        self._save("codec", codec.weights)
        self._save("encoder", codec.encoder.state_dict())
        self._save("discriminator", codec.discriminator.state_dict())

        torch.backends.cudnn.benchmark = False  # because utterances have many
        talker = self._weights("talker", device)
        batches = talker_training.Batches(
            speech,
            codec.encode(speech),
            eos=self._config.talker.codec_eos_token_id,
            codebook_size=self._config.codec.codebook_size,
            rows=arguments.rows,
            predicted_frames=arguments.predicted_frames,
            seed=seed,
        )
        live = LiveCheckpoint(self._checkpoint, talker, codec.weights)
        talker_training.train(live, talker, batches, self._progress("talker"))
        self._save("talker", talker)

        write_weights(self._checkpoint, talker, codec.weights)
        shutil.copy(Path(__file__).parent / "MODEL_CARD.md", self._checkpoint / "README.md")
        shutil.copy(Path(__file__).resolve().parents[2] / "LICENSE", self._checkpoint / "LICENSE")
        (self._state / f"piece-{piece}").touch()
        plot(self._folder / "log.jsonl", self._folder / "curves.png")
        size = sum(file.stat().st_size for file in self._checkpoint.rglob("*") if file.is_file())
        print(f"{self._checkpoint}: {size / 1e6:.2f} MB")

    def _weights(self, name: str, device: torch.device) -> dict[str, torch.Tensor]:
        """The weights of the last call, or initial ones."""
        file = self._state / f"{name}.safetensors"
        if file.is_file():
            return load_file(file, device=str(device))
        specs = shapes.talker_specs(self._configs) if name == "talker" else shapes.codec_specs(self._configs)
        return shapes.initial_weights(specs, self._arguments.seed, device)

    def _save(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        save_file({key: tensor.detach().contiguous() for key, tensor in weights.items()}, self._state / f"{name}.safetensors")

    def _progress(self, phase: str) -> Progress:
        minutes, steps = getattr(self._arguments, f"{phase}_minutes"), getattr(self._arguments, f"{phase}_steps", None)
        return Progress(phase, minutes, self._folder / "log.jsonl", steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder; created if missing")
    parser.add_argument("--smoke", action="store_true", help="the whole chain at toy size; the minutes become limits")
    parser.add_argument("--hours", type=float, default=120.0, help="hours of speech to render (default: 120)")
    parser.add_argument("--codec-minutes", type=float, default=5.0, help="encoder, books and decoder (default: 5)")
    parser.add_argument("--decoder-minutes", type=float, default=4.0, help="the decoder against a discriminator (default: 4)")
    parser.add_argument("--talker-minutes", type=float, default=10.0, help="talker and code predictor (default: 10)")
    parser.add_argument("--codec-batch", type=int, default=32, help="segments of 1.6 s (default: 32)")
    parser.add_argument("--rows", type=int, default=40_000, help="talker input rows of a batch (default: 40000)")
    parser.add_argument("--predicted-frames", type=int, default=6_000, help="frames of a batch for the code predictor (default: 6000)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda:N")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that render (default: one per core)")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the rendered speech (default: the system's)")
    return parser


if __name__ == "__main__":
    main()
