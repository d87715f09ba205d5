"""A Triton server from outside: find it, lay out its models, start and stop it.

Models import none of this.
"""
