"""Triton-language kernels of the talker's and the codec's steps, each with a torch twin.

Kernels read no device value on the host and allocate only outputs and temporaries, so that a step can be captured in a CUDA
graph. Importing a module of this package needs `triton`; under TRITON_INTERPRET=1 the kernels run on the CPU. See
docs/reading_kernels.md.
"""
