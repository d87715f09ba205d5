"""Streams of several lines, each a request of its own."""
