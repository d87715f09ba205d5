"""Load on a running server through the real client, and its figures.

For `qwen3-tts bench` and scripts/bench_server.py. texts: the requests. streams: the load of one client process. clients: several
processes, one load after the other. measuring: the points of a benchmark. real_time: the search for the most listeners. audible:
where a stream becomes audible. figures: statistics. record, compare: files of figures, and two runs beside each other. table, shown,
plot: how they are shown.
"""
