"""The HTTP gateway of Qwen3-TTS servers: the API of OpenAI's clients, over gRPC to Triton.

It imports the client (`qwen3_tts_client`), never the engine. `create_app` makes the application, `qwen3-tts gateway` runs it.
"""
