"""Triton-language kernels of one frame step. Each has a torch twin beside it, which says what the kernel computes.

Kernels read no device value on the host and allocate nothing but their outputs, so that a step can be captured in a CUDA
graph. Importing a module of this package needs `triton`; under TRITON_INTERPRET=1 the kernels run on the CPU.
"""
