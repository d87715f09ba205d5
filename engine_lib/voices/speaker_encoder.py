"""SpeakerEncoder: recordings to speaker embeddings (x-vectors).

Official: Qwen3TTSSpeakerEncoder and mel_spectrogram. Log-mel frames go through an ECAPA-TDNN (Desplanques et al. 2020). Clips of any
lengths share a batch: every convolution reflects each clip at its own end, and means and softmax leave out the padding behind it, so
the other clips change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.audio_utils import mel_filter_bank

from engine_lib.checkpoint import Weights
from engine_lib.checkpoint_config import SpeakerEncoderConfig

# (name below "speaker_encoder.", *shape) -> float32 tensor
Take = Callable[..., torch.Tensor]

SAMPLE_RATE, MAX_FREQUENCY = 24_000, 12_000
N_FFT, HOP = 1024, 256
MAGNITUDE_EPSILON, MEL_FLOOR, VARIANCE_FLOOR = 1e-9, 1e-5, 1e-12


class SpeakerEncoder(nn.Module):
    """The speaker encoder of a `base` checkpoint, in float32."""

    def __init__(self, weights: Weights, config: SpeakerEncoderConfig, *, device: torch.device) -> None:
        """Take the weights `speaker_encoder.*`.

        Raises:
            CheckpointError: a weight is missing or has another shape.
        """
        super().__init__()

        def take(name: str, *shape: int) -> torch.Tensor:
            return weights.take(f"speaker_encoder.{name}", shape, dtype=torch.float32, device=device)

        channels, kernels, dilations = config.enc_channels, config.enc_kernel_sizes, config.enc_dilations
        last = channels[-1]
        self.log_mel = LogMel(config.mel_dim, device)
        self.first = TimeDelayLayer(take, "blocks.0", config.mel_dim, channels[0], kernels[0], dilations[0])
        self.blocks = nn.ModuleList(
            SERes2NetBlock(take, f"blocks.{i}", channels[i - 1], channels[i], kernels[i], dilations[i], config)
            for i in range(1, len(channels) - 1)
        )
        self.aggregate = TimeDelayLayer(take, "mfa", last, last, kernels[-1], dilations[-1])
        self.pool = AttentiveStatisticsPooling(take, "asp", last, config.enc_attention_channels)
        self.project = Convolution(take, "fc", 2 * last, config.enc_dim)

    def forward(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embed the voice of each clip.

        Args:
            clips: each [samples] float32 at 24 kHz, on the encoder's device.

        Returns:
            [len(clips), enc_dim] float32.
        """
        frames = [self.log_mel(clip) for clip in clips]
        batch = Batch([len(clip) for clip in frames], frames[0].device)
        x = self.first(pad_sequence(frames, batch_first=True).transpose(1, 2), batch)
        outputs = []
        for block in self.blocks:
            x = block(x, batch)
            outputs.append(x)
        x = self.aggregate(torch.cat(outputs, 1), batch)
        return self.project(self.pool(x, batch)).squeeze(2)


class Batch:
    """The frames of a padded batch that belong to its clips."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = torch.tensor(lengths, device=device)[:, None]
        self.time = max(lengths)
        self.valid = (torch.arange(self.time, device=device) < self.lengths)[:, None]  # [batch, 1, time]
        self._reflections: dict[int, torch.Tensor] = {}

    def reflected(self, x: torch.Tensor, extra: int) -> torch.Tensor:
        """[batch, channels, time] with `extra` more frames, half of them on each side, that mirror each clip at its ends."""
        if not extra:
            return x
        if extra not in self._reflections:
            last = self.lengths - 1
            frame = (torch.arange(self.time + extra, device=x.device) - extra // 2).abs()
            self._reflections[extra] = (last - (last - frame).abs()).clamp(min=0)[:, None]  # frames farther behind are not used
        return x.gather(2, self._reflections[extra].expand(-1, x.shape[1], -1))

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, time] to [batch, channels, 1], over each clip's own frames."""
        return (x * self.valid).sum(2, keepdim=True) / self.lengths[:, None]


class LogMel(nn.Module):
    """Logarithm of mel-scaled magnitudes; the filters are those of librosa (Slaney)."""

    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, mel_dim: int, device: torch.device) -> None:
        super().__init__()
        filters = mel_filter_bank(N_FFT // 2 + 1, mel_dim, 0, MAX_FREQUENCY, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32, device=device))
        self.register_buffer("window", torch.hann_window(N_FFT, device=device))

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """[samples] to [samples // 256, mel_dim]."""
        side = (N_FFT - HOP) // 2
        padded = F.pad(clip[None], (side, side), mode="reflect")
        spectrum = torch.stft(padded, N_FFT, HOP, window=self.window, center=False, return_complex=True)[0]
        magnitude = (torch.view_as_real(spectrum).square().sum(-1) + MAGNITUDE_EPSILON).sqrt()
        return (magnitude.T @ self.filters).clamp(min=MEL_FLOOR).log()


class Convolution(nn.Module):
    """Convolution in time that keeps the number of frames."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, take: Take, name: str, into: int, out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.register_buffer("weight", take(f"{name}.weight", out, into, kernel))
        self.register_buffer("bias", take(f"{name}.bias", out))
        self.dilation, self.extra = dilation, dilation * (kernel - 1)

    def forward(self, x: torch.Tensor, batch: Batch | None = None) -> torch.Tensor:
        """[batch, into, time] to [batch, out, time]; `batch` is needed if the kernel is longer than one frame."""
        if batch is not None:
            x = batch.reflected(x, self.extra)
        return F.conv1d(x, self.weight, self.bias, dilation=self.dilation)


class TimeDelayLayer(nn.Module):
    """Convolution and ReLU."""

    def __init__(self, take: Take, name: str, into: int, out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = Convolution(take, f"{name}.conv", into, out, kernel, dilation)

    def forward(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[batch, into, time] to [batch, out, time]."""
        return self.conv(x, batch).relu()


class SERes2NetBlock(nn.Module):
    """Res2Net between two pointwise layers, then squeeze and excitation; a residual connection around it all."""

    def __init__(self, take: Take, name: str, into: int, out: int, kernel: int, dilation: int, config: SpeakerEncoderConfig) -> None:
        super().__init__()
        self.scale = config.enc_res2net_scale
        part = out // self.scale
        self.into = TimeDelayLayer(take, f"{name}.tdnn1", into, out)
        self.parts = nn.ModuleList(
            TimeDelayLayer(take, f"{name}.res2net_block.blocks.{i}", part, part, kernel, dilation) for i in range(self.scale - 1)
        )
        self.out = TimeDelayLayer(take, f"{name}.tdnn2", out, out)
        self.squeeze = Convolution(take, f"{name}.se_block.conv1", out, config.enc_se_channels)
        self.excite = Convolution(take, f"{name}.se_block.conv2", config.enc_se_channels, out)

    def forward(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[batch, into, time] to [batch, out, time]; both widths are equal."""
        first, *rest = self.into(x, batch).chunk(self.scale, 1)
        outputs = [first]
        for layer, part in zip(self.parts, rest, strict=True):
            outputs.append(layer(part if len(outputs) == 1 else part + outputs[-1], batch))
        y = self.out(torch.cat(outputs, 1), batch)
        return x + y * self.excite(self.squeeze(batch.mean(y)).relu()).sigmoid()


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation over time, weighted for each channel by attention."""

    def __init__(self, take: Take, name: str, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.attend = TimeDelayLayer(take, f"{name}.tdnn", 3 * channels, attention_channels)
        self.score = Convolution(take, f"{name}.conv", attention_channels, channels)

    def forward(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[batch, channels, time] to [batch, 2 * channels, 1]."""
        mean, deviation = _statistics(x, batch.valid / batch.lengths[:, None])
        context = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], 1)
        scores = self.score(self.attend(context, batch).tanh())
        weights = scores.masked_fill(~batch.valid, -torch.inf).softmax(2)
        return torch.cat(_statistics(x, weights), 1)


def _statistics(x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and standard deviation over time, each [batch, channels, 1]."""
    mean = (weights * x).sum(2, keepdim=True)
    return mean, (weights * (x - mean).square()).sum(2, keepdim=True).clamp(min=VARIANCE_FLOOR).sqrt()
