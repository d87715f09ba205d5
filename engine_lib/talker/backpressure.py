"""AdmissionPause: a pause in which the engine begins no further stream, because the codec has to catch up."""

from __future__ import annotations

import time


class AdmissionPause:
    """A pause that ends by itself.

    Attributes:
        until: of time.monotonic(), when it ends.
    """

    def __init__(self) -> None:
        self.until = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the pause lasts."""
        return time.monotonic() < self.until
