"""A Triton server from outside: finding it, laying out its models, starting and stopping it. Models import none of this."""
