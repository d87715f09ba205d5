"""Whether a resource is level: a straight line through its samples, with the uncertainty of its slope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST = 8  # samples that give a slope
SURE = 2.0  # standard errors: a slope counts as above a limit only if it is by so many


@dataclass(frozen=True)
class Slope:
    """A slope by least squares, in units of the samples an hour.

    Attributes:
        uncertainty: its standard error. Samples that follow each other resemble each other, so they count as fewer.
    """

    per_hour: float
    uncertainty: float

    def is_above(self, limit: float) -> bool:
        """Whether the slope is surely above `limit`."""
        return self.per_hour - SURE * self.uncertainty > limit

    def __str__(self) -> str:
        return f"{self.per_hour:.1f} ± {self.uncertainty:.1f} MB/h"

    def is_below(self, limit: float) -> bool:
        """Whether the slope is surely below `limit`. A short run often shows neither."""
        return self.per_hour + SURE * self.uncertainty < limit


def slope(seconds: npt.ArrayLike, values: npt.ArrayLike) -> Slope | None:
    """The slope of `values` over `seconds`, both of one length; None if there are too few."""
    hours, levels = np.asarray(seconds, np.float64) / 3600, np.asarray(values, np.float64)
    if len(levels) < FEWEST:
        return None
    hours -= hours.mean()
    spread = float(hours @ hours)
    per_hour = float(hours @ levels) / spread
    rest = levels - levels.mean() - per_hour * hours
    variance = float(rest @ rest) / (len(levels) - 2)
    if not variance:
        return Slope(per_hour, 0.0)
    alike = max(0.0, min(0.98, float(rest[1:] @ rest[:-1]) / float(rest @ rest)))  # correlation of neighbours
    return Slope(per_hour, math.sqrt(variance / spread * (1 + alike) / (1 - alike)))
