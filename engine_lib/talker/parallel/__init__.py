"""Tensor parallelism: several ranks, each with a shard of the talker."""
