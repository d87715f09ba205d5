"""Speak into a WAV file through Triton, chunk by chunk.

python client/examples/triton_sync.py [OUT.wav [HOST:PORT]]
"""

import sys
import wave

import numpy as np

from qwen3_tts_client import Client

path, *url = sys.argv[1:] or ["hello.wav"]
with Client(*url) as client, wave.open(path, "wb") as file:
    file.setparams((1, 2, 24_000, 0, "NONE", ""))
    for chunk in client.stream("Nice to meet you."):
        file.writeframes((chunk.audio * 32767).astype(np.int16).tobytes())
        print(f"chunk {chunk.index}: {chunk.seconds:.2f} s {chunk.finish_reason}")
