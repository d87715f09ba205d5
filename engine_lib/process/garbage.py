"""Python's garbage collector in a process that serves."""

from __future__ import annotations

import gc


def freeze_loaded() -> None:
    """Let later collections pass over what is loaded, which stays: going through it all holds up every thread for tens of milliseconds."""
    gc.collect()
    gc.freeze()
