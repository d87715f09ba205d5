"""Count the passes of the code predictor that a frame would need with drafts, on the CPU.

    python scripts/count_drafts.py scripts/voice_in_the_box/checkpoint

Today a frame needs 15 passes, one a codebook. A pass can guess the next books, too: their heads on the hidden state that it has.
The pass after it checks these drafts, all at once, and keeps those that equal the codes that 15 passes would sample: so the speech
stays what it is. A draft and its code are sampled with the same random numbers, of which two kinds are compared: one uniform number a
book (today's), and one Gumbel number an id, of which the largest sum with its logit wins. The speech is sampled with the voice's
own settings; speculation pays if a pass gives many codes, because it also reads more heads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from compare_logits import attend_to_the_past, config_of, inputs_of, worker_of

from benching.arguments import HelpFormatter
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.checkpoint import Checkpoint
from engine_lib.prompt import PromptBuilder
from engine_lib.talker.device.code_predictor import CodePredictor, Sample
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.sampler import SamplingTensors, filter_logits, sample
from voice_in_the_box.sentences import Sentences

SENTENCES_SEED = 77
DRAFTS = (1, 2, 3, 4, 14)


def passes_of(matches: torch.Tensor, most_drafts: int) -> torch.Tensor:
    """Passes that each frame needs.

    Args:
        matches: [frames, books, books] bool: at [:, p, d] whether the draft of book p + d, made by the pass that gives book p, is its code;
            [:, :, 0] is not used.
        most_drafts: that a pass makes.

    Returns:
        [frames] int64.
    """
    num_frames, books, _ = matches.shape
    rows = torch.arange(num_frames)
    book, passes = torch.zeros(num_frames, dtype=torch.int64), torch.zeros(num_frames, dtype=torch.int64)
    while bool((is_open := book < books).any()):
        passes += is_open
        at = book.clamp(max=books - 1)
        goes_on, accepted = is_open.clone(), torch.zeros_like(book)
        for draft in range(1, min(most_drafts, books - 1) + 1):
            goes_on &= (book + draft < books) & matches[rows, at, draft]
            accepted += goes_on
        book = torch.where(is_open, book + accepted + 1, book)
    return passes


def matches_of(predictor: CodePredictor, hidden: torch.Tensor, code0: torch.Tensor, draw: Sample) -> torch.Tensor:
    """Sample books 1 to 15 with `draw`, and the drafts of each pass; see `passes_of`.

    Args:
        hidden: [frames, talker hidden]; code0: [frames] int64.
    """
    codes, num_frames = predictor.generate(hidden, code0, draw), len(hidden)
    books = codes.shape[1]
    frames = torch.cat([code0[:, None], codes], dim=1)
    embedded = [F.embedding(frames[:, book], predictor.code_embeddings[book]) for book in range(books)]
    cos, sin = (table.repeat(num_frames, 1) for table in (predictor.cos, predictor.sin))
    rows = torch.stack([predictor.projected(hidden), *embedded], dim=1).flatten(0, 1)
    out = attend_to_the_past(predictor.transformer, num_frames, rows, cos, sin).unflatten(0, (num_frames, -1))[:, 1:]
    matches = torch.zeros(num_frames, books, books, dtype=torch.bool)
    for book in range(books):
        for draft in range(books - book):
            guess = draw(book + draft + 1, F.linear(out[:, book], predictor.heads[book + draft]).float())
            matches[:, book, draft] = guess == codes[:, book + draft]
    return matches


def draws_of(params: SamplingTensors, vocab: int, books: int, seed: int) -> dict[str, Sample]:
    """Both ways to sample, each with the same random numbers whenever it samples a book of a frame."""
    frames, random = len(params.temperature), torch.Generator().manual_seed(seed)
    uniforms = torch.rand(books + 1, frames, generator=random)
    gumbels = -(-torch.rand(books + 1, frames, vocab, generator=random).clamp(1e-30, 1 - 2**-24).log()).log()

    def by_inverse(book: int, logits: torch.Tensor) -> torch.Tensor:
        return sample(logits, params, uniforms[book])

    def by_gumbel(book: int, logits: torch.Tensor) -> torch.Tensor:
        return (filter_logits(logits, params) + gumbels[book]).argmax(-1)

    return {"one uniform number": by_inverse, "a Gumbel number an id": by_gumbel}


def speak(checkpoint: Checkpoint, model: TalkerModel, sentences: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled speech: the talker's hidden state [frames, hidden] and codebook 0 [frames] of each frame."""
    texts = Sentences(SENTENCES_SEED + seed).held_out(sentences)
    voices = sorted(checkpoint.config.talker.speaker_ids)
    speakers = [voices[i % len(voices)] for i in range(sentences)]
    with Qwen3TTS(checkpoint, config_of(checkpoint, {"max_num_seqs": "16"})) as tts:
        spoken = list(tts.generate_codes(texts, speakers, "english", seed=seed, max_new_tokens=400))
    builder, hidden, code0 = PromptBuilder(checkpoint, max_text_length=4000), [], []
    for text, voice, frames in zip(texts, speakers, spoken, strict=True):
        prompt = builder.build(text=text, voice=voice, language="english", non_streaming_mode=True)
        text_ids, codes = inputs_of(prompt, frames, model.tts_pad_token_id)
        positions = torch.arange(len(codes) - 1)
        x = model.embed(text_ids[:-1], codes[:-1])
        hidden.append(attend_to_the_past(model.transformer, 1, x, model.cos[positions], model.sin[positions])[-len(frames) :])
        code0.append(torch.from_numpy(frames[:, 0]).long())
    return torch.cat(hidden), torch.cat(code0)


def sampling_of(checkpoint: Checkpoint, frames: int) -> SamplingTensors:
    """The voice's own sampling of books 1 to 15, for each frame."""
    own = checkpoint.sampling_defaults()
    return SamplingTensors(
        temperature=torch.full((frames,), own.subtalker_temperature),
        top_k=torch.full((frames,), own.subtalker_top_k, dtype=torch.int32),
        top_p=torch.full((frames,), own.subtalker_top_p),
        do_sample=torch.ones(frames, dtype=torch.bool),
    )


@torch.inference_mode()
def main() -> int:
    """Read the command line, speak, count and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder in the published layout")
    parser.add_argument("--sentences", type=int, default=20, help="that are spoken (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first sentence (default 0)")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(arguments.checkpoint)
    model = worker_of(checkpoint, {}).model
    predictor = model.code_predictor
    hidden, code0 = speak(checkpoint, model, arguments.sentences, arguments.seed)
    books, vocab = predictor.num_code_groups - 1, predictor.heads.shape[1]
    print(f"{arguments.sentences} sentences, {len(hidden)} frames; passes a frame (codes a pass), {books} without drafts")
    print(f"{'random numbers':>22}" + "".join(f"{f'{drafts} drafts':>16}" for drafts in DRAFTS))
    for name, draw in draws_of(sampling_of(checkpoint, len(hidden)), vocab, books, arguments.seed).items():
        matches = matches_of(predictor, hidden, code0, draw)
        passes = [float(passes_of(matches, drafts).double().mean()) for drafts in DRAFTS]
        print(f"{name:>22}" + "".join(f"{f'{number:.2f} ({books / number:.2f})':>16}" for number in passes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
