"""Write a random-weight Qwen3-TTS checkpoint in the published folder layout.

Tests and benchmarks use it in place of the real weights: shapes, names, ids and file formats are the published ones, the sound is
noise. The same arguments give the same bytes. Every tensor has a generator of its own, seeded by its name, so the order of writing
and the number of shards change nothing.

    python scripts/make_checkpoint.py checkpoints/tiny
    python scripts/make_checkpoint.py checkpoints/base-1.7b --size 1.7b --kind base --dtype bfloat16 --shards 2
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from random_checkpoint.configs import KINDS, SIZES, Config, build_configs
from random_checkpoint.tensors import TensorSpec, speech_tokenizer_tensors, talker_tensors
from random_checkpoint.tokenizer import BPE_VOCAB, write_tokenizer
from random_checkpoint.vocabulary import first_special_id

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FEATURE_EXTRACTOR = {
    "chunk_length_s": None,
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "overlap": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 24000,
}


def make_checkpoint(
    out: str | Path,
    size: str = "tiny",
    kind: str = "custom_voice",
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    overrides: Config | None = None,
    eos_gain: float | None = None,
) -> Path:
    """Write the checkpoint into `out` (created if missing, its files replaced) and return that path.

    `dtype` and `shards` are those of the talker's model.safetensors; the speech tokenizer is one float32 file, as published.
    `overrides` maps dotted config keys to values: `{"talker_config.num_hidden_layers": 3, "tts_model_size": "1b7"}`; a key may
    start with `generation_config.` or `speech_tokenizer.` to reach those files. An unknown key raises KeyError.
    `eos_gain` scales the end-of-speech row of codec_head. With tiny's default, 1.5, sampled speech ends after some tens of frames
    (their number depends on the seed and the shapes). With 0, the default of the large sizes, it practically never ends, so that
    benchmarks control its length.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {sorted(DTYPES)}")
    if shards < 1:
        raise ValueError(f"shards={shards}: must be at least 1")
    if eos_gain is None:
        eos_gain = 1.5 if size == "tiny" else 0.0
    out = Path(out)
    configs = build_configs(size, kind, overrides, bpe_vocab=BPE_VOCAB)
    config = configs["config"]
    write_configs(out, configs)
    write_tokenizer(out, first_special_id(config["talker_config"]["text_vocab_size"], BPE_VOCAB))

    _write_model(out, list(talker_tensors(config)), seed, DTYPES[dtype], shards, eos_gain)
    codec = {spec.name: _fill(spec, seed) for spec in speech_tokenizer_tensors(configs["speech_tokenizer"])}
    codec_file = out / "speech_tokenizer" / "model.safetensors"
    save_file(codec, codec_file, metadata={"format": "pt"})
    codec_file.chmod(0o644)
    return out


def write_configs(folder: Path, configs: Mapping[str, Config]) -> None:
    """Write the JSON files of a checkpoint, except those of its tokenizer."""
    (folder / "speech_tokenizer").mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", configs["config"])
    _write_json(folder / "generation_config.json", configs["generation_config"])
    _write_json(folder / "speech_tokenizer" / "config.json", configs["speech_tokenizer"])
    _write_json(folder / "speech_tokenizer" / "preprocessor_config.json", FEATURE_EXTRACTOR)


def _write_json(path: Path, value: Config) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_model(out: Path, specs: list[TensorSpec], seed: int, dtype: torch.dtype, shards: int, eos_gain: float) -> None:
    for old in [*out.glob("model*.safetensors"), out / "model.safetensors.index.json"]:
        old.unlink(missing_ok=True)
    names = ["model.safetensors"] if shards == 1 else [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map: dict[str, str] = {}
    for name, part in zip(names, _split(specs, shards), strict=True):
        # Only one shard is in memory at a time.
        save_file({spec.name: _fill(spec, seed, eos_gain).to(dtype) for spec in part}, out / name, metadata={"format": "pt"})
        (out / name).chmod(0o644)  # because safetensors makes it private, and a server may run as another user
        weight_map |= {spec.name: name for spec in part}
    if shards > 1:
        total = sum(spec.numel for spec in specs) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(out / "model.safetensors.index.json", index)


def _split(specs: list[TensorSpec], shards: int) -> Iterable[list[TensorSpec]]:
    """Cut the list into `shards` parts of about equal size."""
    total, seen = sum(spec.numel for spec in specs), 0
    parts: list[list[TensorSpec]] = [[] for _ in range(shards)]
    for spec in specs:
        parts[min(seen * shards // total, shards - 1)].append(spec)
        seen += spec.numel
    return parts


def _random(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(shape, generator=generator)


def _usage(name: str, size: int, seed: int) -> torch.Tensor:
    """Cluster usage: positive, but a few entries are unused (0), so that readers must clamp the divisor."""
    usage = _random(name, (size,), seed).abs() + 0.5
    usage[::97] = 0.0
    return usage


def _fill(spec: TensorSpec, seed: int, eos_gain: float = 1.0) -> torch.Tensor:
    if spec.fill == "initialized":
        return torch.ones(spec.shape)
    if spec.fill == "usage":
        return _usage(spec.name, spec.shape[0], seed)
    values = _random(spec.name, spec.shape, seed).mul_(spec.scale)
    if spec.fill == "codebook":
        # The stored sum is the entry times its (clamped) usage, as after an exponential moving average.
        usage = _usage(spec.name.rpartition(".")[0] + ".cluster_usage", spec.shape[0], seed)
        return values * usage.clamp(min=1e-5)[:, None]
    if spec.fill == "zero_sum":
        return values - values.mean(dim=-1, keepdim=True)
    if spec.eos_row is not None:
        values[spec.eos_row] *= eos_gain
    return values.add_(spec.mean)


def main() -> None:
    """Read the command line and write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; created if missing")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="tiny runs on two CPU cores; the others have the published shapes")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="custom_voice",
        help="custom_voice: nine speakers; base: voice cloning; voice_design: described voices",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other weights of the same shapes (default: 0)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of the talker; the speech tokenizer is always float32")
    parser.add_argument(
        "--shards", type=int, default=1, metavar="N", help="split model.safetensors into N files with an index (default: 1)"
    )
    parser.add_argument(
        "--eos-gain",
        type=float,
        default=None,
        metavar="G",
        help="likelihood that speech ends: 0 never, 1.5 after some tens of frames (tiny's default)",
    )
    args = parser.parse_args()
    try:
        path = make_checkpoint(args.out, args.size, args.kind, args.seed, args.dtype, args.shards, eos_gain=args.eos_gain)
    except OSError as error:
        parser.error(f"OUT: {error.filename or args.out}: {error.strerror or error}")
    megabytes = sum(f.stat().st_size for f in path.rglob("*.safetensors")) / 1e6
    print(f"{path}: {args.size} {args.kind}, {megabytes:.0f} MB of weights")


if __name__ == "__main__":
    main()
