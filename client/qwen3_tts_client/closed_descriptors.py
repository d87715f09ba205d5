"""What a program does first that may have been started with a closed input or output."""

from __future__ import annotations

import os

STANDARD = 3  # input, output, errors: the descriptors from 0 on


def open_closed_descriptors() -> None:
    """Open /dev/null for each of the standard ones that is closed; else a connection or a file takes its number, and what goes there."""
    for number in range(STANDARD):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free
