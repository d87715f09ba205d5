"""What the bench_*.py commands share."""
