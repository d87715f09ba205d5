"""A recogniser as users of compare_quality.py name one: prints the digits of each file."""

from __future__ import annotations

import sys

import soundfile

from voice_in_the_box.digits import DigitRecogniser

if __name__ == "__main__":
    digits = DigitRecogniser()
    for file in sys.argv[1:]:
        print(*digits.hear(soundfile.read(file, dtype="float32")[0]))
