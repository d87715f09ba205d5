"""Modules of the bench_*.py commands."""
