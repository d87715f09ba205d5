"""Text that comes while its request speaks."""
