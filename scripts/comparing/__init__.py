"""Parts of compare_quality.py: speaking, recognising, figures with their confidence, the picture."""
