"""bench_gateway.py with its make-believe server: every byte arrives, with the gateway and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from patience import PROGRAM_PATIENCE

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gateway.py"


def test_no_byte_is_lost_on_the_way_through_the_gateway(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    load = ["--streams", "8", "--seconds", "1", "--speed", "0", "--formats", "pcm", "mp3"]
    subprocess.run([sys.executable, str(SCRIPT), "--fake", *load, "--output", str(output)], check=True, timeout=PROGRAM_PATIENCE)
    results = json.loads(output.read_text())["results"]
    assert [result["way"] for result in results] == ["grpc", "pcm", "mp3"]
    assert all(result["done"] > 0 and result["wrong"] == 0 for result in results)
