"""Speak several texts at a time through Triton: python client/examples/triton_asyncio.py [HOST:PORT]"""

import asyncio
import sys

from qwen3_tts_client import AsyncClient

TEXTS = ["Good morning.", "Nice to meet you.", "There is a small penguin in the window."]


async def speak(client: AsyncClient, text: str) -> None:
    """Print each chunk of one text when it comes."""
    async for chunk in client.stream(text):
        print(f"{text[:12]:12} chunk {chunk.index}: {chunk.seconds:.2f} s")


async def main() -> None:
    """Speak all texts together."""
    async with AsyncClient(*sys.argv[1:]) as client:
        await asyncio.gather(*(speak(client, text) for text in TEXTS))


asyncio.run(main())
