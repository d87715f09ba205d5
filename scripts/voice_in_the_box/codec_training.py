"""Trains the codec in two phases.

First encoder, books and decoder learn together on spectral distances. Then the decoder alone learns against a discriminator. The
second phase changes neither encoder nor books, so codes stay the same, and the talker may be trained before or after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine_lib.checkpoint_config import CodecDecoderConfig
from voice_in_the_box.codec_model import Encoder, Quantiser, decode
from voice_in_the_box.corpus import Corpus
from voice_in_the_box.losses import Discriminator, SpectralLoss, adversarial_loss, discriminator_loss
from voice_in_the_box.progress import Progress
from voice_in_the_box.speech import SAMPLES_PER_FRAME

SEGMENT_FRAMES = 20
BOOK_DROPOUT = 0.5
CODEC_RATE, DECODER_RATE, DISCRIMINATOR_RATE = 1e-3, 3e-4, 3e-4
ENCODE_FRAMES = 40_000  # a batch of utterances to encode, padding included


class CodecTrainer:
    """The codec's weights, and the networks that train them.

    Attributes:
        weights: of the decoder and the books, by their published names.
        encoder, discriminator: for training only.
    """

    def __init__(self, weights: dict[str, torch.Tensor], config: CodecDecoderConfig, device: torch.device) -> None:
        self.weights, self.config, self.device = weights, config, device
        self.encoder = Encoder(config.codebook_dim).to(device)
        self.discriminator = Discriminator().to(device)
        self.quantiser = Quantiser(weights, config)
        self._spectral = SpectralLoss().to(device)

    def train_codec(self, corpus: Corpus, progress: Progress, batch: int) -> None:
        """Train encoder, books and decoder together."""
        learned = [tensor.requires_grad_() for name, tensor in self.weights.items() if "_codebook" not in name]
        learned += list(self.encoder.parameters())
        optimizer = torch.optim.AdamW(learned, lr=CODEC_RATE, betas=(0.8, 0.99), weight_decay=0.0, fused=self.device.type == "cuda")
        for _ in progress.steps(optimizer):
            audio = self._segments(corpus, batch)
            quantised = self.quantiser(self.encoder(audio), learn=True, dropout=BOOK_DROPOUT)
            spectral = self._spectral(decode(self.weights, self.config, quantised.latents), audio)
            _step(optimizer, spectral + quantised.commitment, learned)
            progress.log(spectral=spectral, commitment=quantised.commitment)

    def train_decoder(self, corpus: Corpus, progress: Progress, batch: int) -> None:
        """Train the decoder against the discriminator; encoder and books stay."""
        learned = [tensor.requires_grad_() for name, tensor in self.weights.items() if "quantizer" not in name]
        fused = self.device.type == "cuda"
        optimizer = torch.optim.AdamW(learned, lr=DECODER_RATE, betas=(0.8, 0.99), weight_decay=0.0, fused=fused)
        judges = list(self.discriminator.parameters())
        judging = torch.optim.AdamW(judges, lr=DISCRIMINATOR_RATE, betas=(0.8, 0.99), weight_decay=0.0, fused=fused)
        for _ in progress.steps(optimizer, judging):
            audio = self._segments(corpus, batch)
            with torch.no_grad():
                latents = self.quantiser(self.encoder(audio)).latents
            decoded = decode(self.weights, self.config, latents)
            judged = discriminator_loss(self.discriminator(audio), self.discriminator(decoded.detach()))
            _step(judging, judged, judges)
            spectral = self._spectral(decoded, audio)
            with torch.no_grad():
                real = self.discriminator(audio)
            adversarial = adversarial_loss(real, self.discriminator(decoded))
            _step(optimizer, spectral + adversarial, learned)
            progress.log(spectral=spectral, adversarial=adversarial, discriminator=judged)

    @torch.no_grad()
    def encode(self, corpus: Corpus) -> torch.Tensor:
        """Codes [frames, books] uint8 of the whole corpus, one utterance after the other."""
        codes = torch.empty(int(corpus.frames.sum()), self.config.num_quantizers, dtype=torch.uint8, device=self.device)
        starts = corpus.frame_starts
        order = np.argsort(corpus.frames)
        while len(order):
            longest = corpus.frames[order[: 1 + ENCODE_FRAMES // corpus.frames[order[0]]]]
            chosen = order[: max(1, int((np.arange(1, len(longest) + 1) * longest <= ENCODE_FRAMES).sum()))]
            order = order[len(chosen) :]
            frames = torch.from_numpy(corpus.frames[chosen]).to(self.device)
            index = torch.arange(int(frames.max()), device=self.device)
            inside = index < frames[:, None]
            frame_rows = torch.from_numpy(starts[chosen]).to(self.device)[:, None] + torch.minimum(index, frames[:, None] - 1)
            audio = corpus.audio.view(-1, SAMPLES_PER_FRAME)[frame_rows].float() / 32767 * inside[:, :, None]
            quantised = self.quantiser(self.encoder(audio.flatten(1)))
            codes[frame_rows[inside]] = quantised.codes[inside].to(torch.uint8)
        return codes

    def _segments(self, corpus: Corpus, batch: int) -> torch.Tensor:
        """Audio [batch, samples] from random places; a segment may span two utterances."""
        length = SEGMENT_FRAMES * SAMPLES_PER_FRAME
        starts = torch.randint(len(corpus.audio) - length, (batch, 1), device=self.device)
        return corpus.audio[starts + torch.arange(length, device=self.device)].float() / 32767


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, learned: Sequence[torch.Tensor]) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learned, 10.0)
    optimizer.step()
