"""The gateway's lines in a pipe that has no room for them."""

from __future__ import annotations

import json
import logging
import os
import select

from qwen3_tts_gateway.logs import _JsonLines, _Lines

LONG = "x" * (4 * select.PIPE_BUF)


def test_a_line_that_was_cut_ends_before_the_next_one() -> None:
    unread, output = os.pipe()
    os.write(output, bytes(60_000))  # of 65,536 at least
    lines = _Lines(output)
    lines.setFormatter(_JsonLines())
    while not lines._lost:
        lines.emit(logging.makeLogRecord({"msg": LONG}))
    os.set_blocking(unread, False)
    read = b""
    while select.select([unread], [], [], 0)[0]:
        read += os.read(unread, 1 << 20)
    assert not read.endswith(b"\n"), "the last line is cut"
    lines.emit(logging.makeLogRecord({"msg": "next"}))
    after = os.read(unread, 1 << 20)
    assert [json.loads(line)["event"] for line in after.decode().split("\n")[1:-1]] == ["lines are lost", "next"]
    assert after.startswith(b"\n")
    for descriptor in (unread, output):
        os.close(descriptor)
