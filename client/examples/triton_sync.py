"""Speak into a WAV file through Triton, chunk by chunk.

python client/examples/triton_sync.py [OUT.wav [HOST:PORT]]
"""

import sys

from qwen3_tts_client import Client, Speech

path, *url = sys.argv[1:] or ["hello.wav"]
chunks = []
with Client(*url) as client:
    for chunk in client.stream("Nice to meet you."):
        print(f"chunk {chunk.index}: {chunk.seconds:.2f} s {chunk.finish_reason}")
        chunks.append(chunk)
Speech.from_chunks(chunks).save(path)
