"""What samples go through between codec and client: one chain of stages for each stream that asks."""
