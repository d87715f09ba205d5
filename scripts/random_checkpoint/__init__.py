"""Configs, tensors and tokenizer of the checkpoints that make_checkpoint.py writes."""
