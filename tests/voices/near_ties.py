"""Compares codes: if two entries of a codebook are equally near, rounding decides.

All later codebooks of that frame then differ too, because each encodes the rest that the ones before it leave.
"""

from __future__ import annotations

import torch

from engine_lib.voices.reference_encoder import ReferenceEncoder

# Relative to the distance itself. Float32 sums in another order move a latent by about 5e-7 of its length, on a GPU by a few times that.
NEAR_TIE = 2e-5


def assert_same_codes(encoder: ReferenceEncoder, clip: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare two encodings of `clip`, [frames, num_quantizers]; a frame may differ only from a near tie on. All tensors are on the CPU."""
    assert actual.shape == expected.shape
    latents, _ = encoder.latents([clip])
    for frame in (actual != expected).any(1).nonzero().flatten().tolist():
        book = int((actual[frame] != expected[frame]).nonzero()[0])
        distances = _distances(encoder, latents[:, :, frame : frame + 1], expected[frame], book)
        ours, theirs = (distances[codes[frame, book]].item() for codes in (actual, expected))
        message = f"frame {frame} of {len(expected)}, book {book}: entries {ours:.9g} and {theirs:.9g} away; nearest {distances.min():.9g}"
        assert abs(ours - theirs) <= NEAR_TIE * theirs, message


def _distances(encoder: ReferenceEncoder, latent: torch.Tensor, codes: torch.Tensor, book: int) -> torch.Tensor:
    """Distances of all entries of `book` from the rest of `latent` [1, hidden_size, 1] that the books before it leave."""
    quantizer = encoder.quantizer
    semantic = quantizer.num_semantic_quantizers
    part, first = (
        (quantizer.semantic_residual_vector_quantizer, 0) if book < semantic else (quantizer.acoustic_residual_vector_quantizer, semantic)
    )
    residual = part.input_proj(latent).flatten().double()
    for i in range(first, book):
        residual = residual - part.layers[i - first].codebook.embed[codes[i]].double()
    distances: torch.Tensor = (part.layers[book - first].codebook.embed.double() - residual).norm(dim=1)
    return distances
