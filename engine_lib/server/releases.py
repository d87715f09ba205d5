"""Releases of Triton: the least, the recommended, and the faults of those between.

A server says its own version, such as 2.51.0; its container is named by year and month, 24.10. docs/compatibility.md has this table
with its sources. Only 24.10 was run; what is said of later releases is from their release notes, issues and source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

Version = tuple[int, int, int]

LEAST: Version = (2, 51, 0)  # the oldest that anything was run on
RECOMMENDED: Version = (2, 75, 0)
NUMPY_2: Version = (2, 52, 0)  # an older stub gives every tensor without a byte under numpy 2
FREES_REQUESTS: Version = (2, 67, 0)  # older ones keep some requests of clients that leave, for ever
WHEEL = "2.51.0"  # in nvidia-pytriton 0.7.0


class Fault(NamedTuple):
    """A fault of the releases before `mended_in`."""

    mended_in: Version
    what: str


FAULTS = (
    Fault((2, 53, 0), "many cancels in a short time can crash its gRPC front end"),
    Fault((2, 59, 1), "one HTTP request can crash it or take its memory, and clients can reach the models' shared memory"),
    Fault((2, 64, 0), "a model stays ready although its process has died"),
    Fault(FREES_REQUESTS, "a draining or hanging model stays ready, and a cancelled stream can leave a request that keeps a model loaded"),
    Fault((2, 68, 0), "the server stays ready although an ensemble has failed to load"),
    Fault((2, 69, 0), "clients may register shared memory"),
    Fault((2, 71, 0), "requests between models from several threads can crash a model's process"),
    Fault((2, 73, 0), "a model's process can crash at its end, and a server that is killed leaves regions in /dev/shm"),
    Fault((2, 75, 0), "streams that wait half a minute to be accepted are cancelled in silence"),
)

CRASH = "boost::interprocess::lock_exception"  # of the Python backend, up to 26.05 at least (server 8882)


def container(version: Version) -> str:
    """Name of the monthly container that has this version: 2.51.0 is 24.10, and 25.07 has 2.59.1 instead of a number of its own."""
    months = 2024 * 12 + 9 + version[1] - LEAST[1] + (version >= (2, 59, 1))
    return f"{months // 12 % 100}.{months % 12 + 1:02d}"


def problem_of(version: str, numpy_version: str) -> str | None:
    """Why a server of this version cannot be used with this numpy, with the remedy; None if it can."""
    found = _parsed(version)
    if found is not None and found < LEAST:
        return f"tritonserver {version} is too old; use {_name(RECOMMENDED)}, and {_name(LEAST)} at least"
    if found is not None and found < NUMPY_2 and int(numpy_version.partition(".")[0]) >= 2:
        return f"the models of tritonserver {version} get no tensor under numpy 2, and this is numpy {numpy_version}; pip install 'numpy<2'"
    return None


def advice_on_exit(log: Iterable[str]) -> str:
    """What to do after a crash that is Triton's own and known; "" if the log tells of none."""
    return " by a rare fault of its Python backend, so start it again," if any(CRASH in line for line in log) else ""


def keeps_requests(version: str) -> bool:
    """Whether a server of this version is known to keep requests of clients that leave."""
    found = _parsed(version)
    return found is not None and found < FREES_REQUESTS


def notice_of(version: str) -> str:
    """One line about a server of this version, for the log."""
    found = _parsed(version)
    if found is None:
        return f"Triton {version}: nothing is known of this version; {_name(RECOMMENDED)} is recommended"
    faults = [fault.what for fault in FAULTS if found < fault.mended_in]
    if not faults:
        return f"Triton {_name(found)}"
    return f"warning: Triton {_name(found)} is older than {_name(RECOMMENDED)}, which is recommended: {'; '.join(faults)}"


def _parsed(version: str) -> Version | None:
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def _name(version: Version) -> str:
    return f"{'.'.join(map(str, version))} ({container(version)})"
