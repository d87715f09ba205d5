"""The codec's engine in a process of its own."""
