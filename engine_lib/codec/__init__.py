"""The codec decoder: frames of codes to audio, for many streams at once, each exactly as if decoded alone and in one piece."""
