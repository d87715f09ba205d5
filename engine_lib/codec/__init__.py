"""The codec decoder: codes to audio for many streams, each as if decoded alone and in one piece."""
