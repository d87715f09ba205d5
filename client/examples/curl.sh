#!/usr/bin/env bash
# Speak with curl: client/examples/curl.sh [OUT.mp3 [BASE_URL]]
set -euo pipefail
out="${1:-hello.mp3}"
rm -f "$out"
curl --fail-with-body --no-buffer "${2:-http://localhost:8880/v1}/audio/speech" \
    -H "Content-Type: application/json" -d '{"model": "qwen3-tts", "voice": "alloy", "input": "Nice to meet you."}' -o "$out" ||
    { cat "$out" >&2 2>/dev/null; exit 1; } # what the gateway says
