"""Tensor parallelism: ranks that each hold a shard of the talker."""
