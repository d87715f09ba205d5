"""The HTTP gateway of a Qwen3-TTS server: the API that OpenAI's clients speak, over gRPC to one or more Triton servers.

It imports the client (`qwen3_tts_client`), never the engine. `create_app` makes the application, `qwen3-tts gateway` runs it.
"""
