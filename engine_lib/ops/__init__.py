"""Torch reference operators, below the kernels, which are tested against them."""
