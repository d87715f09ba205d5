"""Torch reference operators, below the kernels: what a kernel must compute stands here."""
