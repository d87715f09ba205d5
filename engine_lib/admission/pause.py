"""AdmissionPause: while it lasts, the engine begins no new stream, because the codec must catch up."""

from __future__ import annotations

import time


class AdmissionPause:
    """A pause that ends by itself.

    Attributes:
        until: time.monotonic() at which it ends.
    """

    def __init__(self) -> None:
        self.until = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the pause has not ended yet."""
        return time.monotonic() < self.until
