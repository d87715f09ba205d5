"""Losses of the codec: spectral distances at several resolutions, and a discriminator of spectrograms.

Spectral distances ignore the phase, as the ear does (Yamamoto et al. 2020, Parallel WaveGAN). The discriminator removes the
buzz that they leave (Defossez et al. 2022, EnCodec).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from voice_in_the_box.codec_model import LogMel

RESOLUTIONS = (2048, 1024, 512, 256, 128)
MELS = ((2048, 128), (1024, 80), (512, 40), (256, 20))
MAGNITUDE_FLOOR = 1e-3  # about 60 dB below a full-scale sine; anything quieter counts as silence
DISCRIMINATOR_WINDOWS = (1024, 512, 256)


class SpectralLoss(nn.Module):
    """Distance of log magnitudes and of magnitudes, linear and mel."""

    def __init__(self) -> None:
        super().__init__()
        self.mels = nn.ModuleList(LogMel(window // 4, window, mels) for window, mels in MELS)

    def forward(self, audio: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[batch, samples] each, to a scalar."""
        loss = audio.new_zeros(())
        for window in RESOLUTIONS:
            ours, theirs = magnitude(audio, window), magnitude(target, window)
            loss = loss + (theirs - ours).norm() / theirs.norm().clamp(min=1e-3)
            loss = loss + F.l1_loss(ours.clamp(min=MAGNITUDE_FLOOR).log(), theirs.clamp(min=MAGNITUDE_FLOOR).log())
        for mel in self.mels:
            loss = loss + 2 * F.l1_loss(mel(audio), mel(target))
        return loss


class Discriminator(nn.Module):
    """Distinguishes real spectrograms from decoded ones, patch by patch, at several resolutions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Conv2d(2, width, (3, 9), padding=(1, 4)),
                    *(nn.Conv2d(width, width, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4)) for d in (1, 2, 4)),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.Conv2d(width, 1, 3, padding=1),
                ]
            )
            for _ in DISCRIMINATOR_WINDOWS
        )

    def forward(self, audio: torch.Tensor) -> list[list[torch.Tensor]]:
        """Activations of each layer of each stack for [batch, samples]; the last ones of a stack are its verdicts."""
        return [self._stack(layers, spectrum(audio, window)) for layers, window in zip(self.stacks, DISCRIMINATOR_WINDOWS, strict=True)]

    def _stack(self, layers: nn.Module, complex_spectrum: torch.Tensor) -> list[torch.Tensor]:
        x = torch.view_as_real(complex_spectrum).permute(0, 3, 2, 1)  # [batch, 2, time, frequency]
        x = x * (x.square().sum(1, keepdim=True) + 1e-6) ** -0.35  # compressed, so that quiet sounds count too
        activations = []
        assert isinstance(layers, nn.ModuleList)
        for i, layer in enumerate(layers):
            x = layer(x)
            if i < len(layers) - 1:
                x = F.leaky_relu(x, 0.2)
            activations.append(x)
        return activations


def discriminator_loss(real: list[list[torch.Tensor]], decoded: list[list[torch.Tensor]]) -> torch.Tensor:
    """Least squares: real towards 1, decoded towards 0."""
    losses = [(1 - r[-1]).square().mean() + d[-1].square().mean() for r, d in zip(real, decoded, strict=True)]
    return torch.stack(losses).mean()


def adversarial_loss(real: list[list[torch.Tensor]], decoded: list[list[torch.Tensor]]) -> torch.Tensor:
    """The decoder's loss: verdicts towards 1, and activations like those of the real audio."""
    verdicts = torch.stack([(1 - stack[-1]).square().mean() for stack in decoded]).mean()
    pairs = [(ours, theirs) for d, r in zip(decoded, real, strict=True) for ours, theirs in zip(d[:-1], r[:-1], strict=True)]
    features = torch.stack([F.l1_loss(ours, theirs.detach()) / theirs.detach().abs().mean().clamp(min=1e-3) for ours, theirs in pairs])
    return verdicts + 2 * features.mean()


def spectrum(audio: torch.Tensor, window: int) -> torch.Tensor:
    """Complex spectrogram [batch, bins, time], scaled so that a full-scale sine is about 1 with any window."""
    shape = torch.hann_window(window, device=audio.device)
    return torch.stft(audio, window, window // 4, window=shape, return_complex=True) / (window / 4)


def magnitude(audio: torch.Tensor, window: int) -> torch.Tensor:
    """Magnitudes [batch, bins, time] of `spectrum`."""
    return torch.view_as_real(spectrum(audio, window)).square().sum(-1).clamp(min=1e-10).sqrt()
