"""OpenAI's own package (pip install openai) against the gateway.

python client/examples/openai_package.py [OUT.mp3 [BASE_URL]]
"""

import sys

from openai import OpenAI

path, *base_url = sys.argv[1:] or ["hello.mp3"]
client = OpenAI(base_url=base_url[0] if base_url else "http://localhost:8880/v1", api_key="unused")
with client.audio.speech.with_streaming_response.create(model="qwen3-tts", voice="alloy", input="Nice to meet you.") as response:
    response.stream_to_file(path)
