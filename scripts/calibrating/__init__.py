"""Helpers of calibrate_alignment.py."""
