"""Parts of fuzz_server.py."""
