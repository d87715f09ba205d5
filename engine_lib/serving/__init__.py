"""What the Triton shells share: request parsing, the talker-to-codec message, senders, metrics, health, the server process.

Nothing here imports `triton_python_backend_utils`; a shell hands the module over where its types are needed.
"""
