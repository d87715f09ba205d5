"""ReferenceEncoder: recordings to codec frames, with the encoder half of Mimi.

The official class is Qwen3TTSTokenizerV2Encoder. This one uses the Mimi layers of transformers, with the same codes under 4.57 and 5.
Clips of any lengths share a batch: behind each clip, every layer sees the padding that it gives a clip alone, so the other clips
change only the rounding of float32 sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.mimi.configuration_mimi import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiEncoder, MimiSplitResidualVectorQuantizer, MimiTransformerModel

from engine_lib.checkpoint import Weights
from engine_lib.checkpoint_config import ReferenceEncoderConfig

# transformers 4.57 ignores Mimi's sliding window (except under flash-attention) and 5 applies it. The official package runs on
# 4.57.3, so here a frame sees all frames before it under any release.
WHOLE_CLIP = 2**30


class ReferenceEncoder(nn.Module):
    """The encoder of `speech_tokenizer/`, in float32, because rounding can move a code, the nearest of many entries, to a neighbour."""

    def __init__(self, weights: Weights, config: ReferenceEncoderConfig, *, device: torch.device) -> None:
        """Take the weights `encoder.*` of the layers and of the codebooks in use.

        Raises:
            CheckpointError: a weight is missing or has another shape.
        """
        super().__init__()
        settings = {"num_quantizers": config.num_quantizers, "sliding_window": WHOLE_CLIP, "attn_implementation": "sdpa"}
        mimi = MimiConfig(**{**config.mimi, **settings, "use_cache": False})
        self.num_quantizers = config.num_quantizers
        self.encoder = MimiEncoder(mimi)
        self.encoder_transformer = MimiTransformerModel(mimi)
        self.downsample = MimiConv1d(mimi, mimi.hidden_size, mimi.hidden_size, kernel_size=4, stride=2, bias=False, pad_mode="replicate")
        self.quantizer = MimiSplitResidualVectorQuantizer(mimi)
        parameters = {
            name: weights.take(f"encoder.{name}", tensor.shape, dtype=torch.float32, device=device)
            for name, tensor in self.state_dict().items()
        }
        # Buffers that are no weights stay on the host: convolutions compute their padding from them, and would wait for a device.
        self.load_state_dict(parameters, assign=True)
        self.encoder_transformer.to(device)  # an exception: the RoPE frequencies must be there
        self.requires_grad_(False).eval()

    def forward(self, clips: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encode each clip.

        Args:
            clips: each [samples] float32 at 24 kHz, on the encoder's device.

        Returns:
            The codes of each clip, [frames, num_quantizers] int64, including a last frame that is not full.
        """
        x, frames = self.latents(clips)
        codes = self.quantizer.encode(x, self.num_quantizers).permute(1, 2, 0)
        return [row[:length] for row, length in zip(codes, frames, strict=True)]

    def latents(self, clips: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
        """The input of the quantizer, [clips, hidden_size, frames], and the number of frames of each clip."""
        x = pad_sequence(list(clips), batch_first=True)[:, None]
        lengths = [len(clip) for clip in clips]
        for layer in self.encoder.layers:
            stride = layer.conv.stride[0] if isinstance(layer, MimiConv1d) else 1
            if stride > 1:  # a layer of stride 1 looks back only
                x = x * (_positions(x) < _column(lengths, x))
                lengths = [-(-length // stride) for length in lengths]
            x = layer(x)
        x = self.encoder_transformer(x.transpose(1, 2), return_dict=True).last_hidden_state.transpose(1, 2)
        last = _column(lengths, x) - 1
        x = self.downsample(x.gather(2, _positions(x).minimum(last).expand(-1, x.shape[1], -1)))
        return x, [-(-length // 2) for length in lengths]


def _positions(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2], device=x.device)[None, None]


def _column(lengths: list[int], x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(lengths, device=x.device)[:, None, None]
