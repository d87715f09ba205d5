"""The codec in training: an unshipped encoder, residual vector quantisation, the engine's decoder.

log-mel -> convolutions down to 12.5 frames a second -> book 0, then books 1..15 on the residual of book 0 -> CodecDecoder.
Codebook entries are moving averages of their latents (van den Oord et al. 2017, appendix A.1), also in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.audio_utils import mel_filter_bank

from engine_lib.checkpoint_config import CodecDecoderConfig
from engine_lib.codec.decoder import CodecDecoder
from engine_lib.codec.streaming import StreamingLayer
from voice_in_the_box.live_checkpoint import LiveWeights, Tensors
from voice_in_the_box.speech import SAMPLE_RATE, SAMPLES_PER_FRAME

MEL_HOP, MEL_WINDOW, NUM_MELS = 240, 1024, 80
ENCODER_WIDTH = 256
USAGE_DECAY = 0.98
DEAD_USAGE = 0.03  # share of the mean usage; an entry below it is replaced by a random latent


class LogMel(nn.Module):
    """Log-mel spectrogram."""

    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, hop: int = MEL_HOP, window: int = MEL_WINDOW, mels: int = NUM_MELS) -> None:
        super().__init__()
        self.hop = hop
        filters = mel_filter_bank(window // 2 + 1, mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.from_numpy(filters.astype(np.float32)))
        self.register_buffer("window", torch.hann_window(window))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """[batch, samples] to [batch, mels, samples / hop]."""
        spectrum = torch.stft(audio, len(self.window), self.hop, window=self.window, return_complex=True).abs()[..., :-1]
        return (spectrum.transpose(1, 2) @ self.filters).transpose(1, 2).clamp(min=1e-4).log()


class Encoder(nn.Module):
    """Audio to one latent per frame; it sees some frames before and after."""

    def __init__(self, dim: int, width: int = ENCODER_WIDTH) -> None:
        super().__init__()
        self.log_mel = LogMel()
        layers: list[nn.Module] = [nn.Conv1d(NUM_MELS, width, 3, padding=1)]
        stride = 1
        while stride * MEL_HOP < SAMPLES_PER_FRAME:
            layers += [_Residual(width), nn.GELU(), nn.Conv1d(width, width, 4, stride=2, padding=1)]
            stride *= 2
        self.layers = nn.Sequential(*layers, _Residual(width), _Residual(width), nn.GELU(), nn.Conv1d(width, dim, 1))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """[batch, frames * SAMPLES_PER_FRAME] to [batch, frames, dim]."""
        latents: torch.Tensor = self.layers(self.log_mel(audio) / 4 + 1)
        return latents.transpose(1, 2)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.GELU(), nn.Conv1d(width, width, 3, padding=1), nn.GELU(), nn.Conv1d(width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.layers(x)
        return out


@dataclass(frozen=True)
class Quantised:
    """Quantised latents.

    Attributes:
        codes: [batch, frames, books] int64.
        latents: [batch, frames, codebook_dim], the decoder's input; gradients pass as if nothing had been rounded.
        commitment: mean squared distance of the encoder's output from the chosen entries.
    """

    codes: torch.Tensor
    latents: torch.Tensor
    commitment: torch.Tensor


class Quantiser:
    """The books in `weights`, by their published names; they learn by moving averages, not by gradients."""

    def __init__(self, weights: Tensors, config: CodecDecoderConfig) -> None:
        self._books = []
        for part, count in (("rvq_first", 1), ("rvq_rest", config.num_quantizers - 1)):
            for i in range(count):
                name = f"decoder.quantizer.{part}.vq.layers.{i}._codebook"
                self._books.append((weights[f"{name}.embedding_sum"], weights[f"{name}.cluster_usage"]))
        self._projections = [
            (weights[f"decoder.quantizer.{part}.input_proj.weight"], weights[f"decoder.quantizer.{part}.output_proj.weight"])
            for part in ("rvq_first", "rvq_rest")
        ]

    def __call__(self, latents: torch.Tensor, *, learn: bool = False, dropout: float = 0.0) -> Quantised:
        """
        Args:
            latents: [batch, frames, codebook_dim] from the encoder.
            learn: move the books towards the data.
            dropout: share of the batch that keeps only a random number of its first books, so that these carry the most.
        """
        (in_first, out_first), (in_rest, out_rest) = ((a[:, :, 0], b[:, :, 0]) for a, b in self._projections)
        num_books = len(self._books)
        kept = torch.randint(1, num_books + 1, (len(latents), 1, 1), device=latents.device)
        kept = torch.where(torch.rand(kept.shape, device=latents.device) < dropout, kept, num_books)

        x = F.linear(latents, in_first)
        codes, chosen = self._nearest(0, x.detach(), learn)
        all_codes, commitment = [codes], F.mse_loss(x, chosen)
        first = F.linear(x + (chosen - x).detach(), out_first)

        x = F.linear(latents - first.detach(), in_rest)
        residual, total = x, torch.zeros_like(x)
        for book in range(1, num_books):
            codes, chosen = self._nearest(book, residual.detach(), learn)
            all_codes.append(codes)
            is_kept = kept > book
            commitment = commitment + (F.mse_loss(residual, chosen, reduction="none") * is_kept).mean()
            total = total + chosen * is_kept
            residual = residual - chosen
        rest = F.linear(x + (total - x).detach(), out_rest) * (kept > 1)
        return Quantised(torch.stack(all_codes, dim=2), first + rest, commitment)

    @torch.no_grad()
    def _nearest(self, book: int, x: torch.Tensor, learn: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [batch, frames] and entries [batch, frames, dim] nearest to x [batch, frames, dim]."""
        sums, usage = self._books[book]
        rows = x.flatten(0, 1)
        table = sums / usage.clamp(min=1e-5)[:, None]
        codes = (table.square().sum(1) - 2 * rows @ table.T).argmin(1)
        if learn:
            counts = torch.zeros_like(usage).index_add_(0, codes, torch.ones_like(rows[:, 0]))
            usage.lerp_(counts, 1 - USAGE_DECAY)
            sums.lerp_(torch.zeros_like(sums).index_add_(0, codes, rows), 1 - USAGE_DECAY)
            dead = usage < DEAD_USAGE * len(rows) / len(table)
            somewhere = rows[torch.randint(len(rows), (len(table),), device=rows.device)]
            usage.copy_(torch.where(dead, len(rows) / len(table), usage))
            sums.copy_(torch.where(dead[:, None], somewhere * usage[:, None], sums))
        return codes.view(x.shape[:2]), table[codes].view(x.shape)


class WholeSequence:
    """The StreamState of sequences decoded in one piece: every past is zeros; none is stored."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self.positions = torch.zeros(batch, dtype=torch.int64, device=device)

    def extend(self, layer: StreamingLayer, x: torch.Tensor) -> torch.Tensor:
        """See StreamState."""
        return F.pad(x, (0, 0) * (x.dim() - 2) + (layer.num_past, 0))


def decode(weights: Tensors, config: CodecDecoderConfig, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents [batch, frames, codebook_dim] to samples [batch, frames * SAMPLES_PER_FRAME] by the engine's decoder."""
    decoder = CodecDecoder(LiveWeights(weights), config, dtype=torch.float32, device=latents.device)
    return decoder.synthesise(latents, WholeSequence(len(latents), latents.device))
