#!/usr/bin/env bash
# Speak with curl: client/examples/curl.sh OUT.mp3 [BASE_URL]
set -euo pipefail
curl --fail-with-body --no-buffer "${2:-http://localhost:8880/v1}/audio/speech" \
    -H "Content-Type: application/json" -d '{"model": "qwen3-tts", "voice": "alloy", "input": "Nice to meet you."}' -o "$1"
