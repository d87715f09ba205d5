"""Load on a running server through the real client, and its figures.

For `qwen3-tts bench` and scripts/bench_server.py. texts: the requests. streams: the load of one client process. clients: several
processes, one point of a benchmark after the other. figures: statistics. table, plot: how they are shown.
"""
