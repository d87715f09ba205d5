"""Triton-language kernels of the talker's and the codec's steps. Each has a torch twin, which says what it computes.

Kernels read no device value on the host and allocate nothing but their outputs, so that a step can be captured in a CUDA
graph. Importing a module of this package needs `triton`; under TRITON_INTERPRET=1 the kernels run on the CPU.
"""
