"""Let LiveKit's and Pipecat's TTS plugins speak through the gateway, and compare with gRPC.

    python scripts/try_voice_agents.py                                  # a server of its own, with the voice in the box, on the CPU
    python scripts/try_voice_agents.py --url http://tts.example:8880    # a gateway that runs; nothing is compared

With --url no other client may speak meanwhile, because an interruption must bring the gateway's open streams to none.

The plugins run in an environment of their own (build/voice-agents), which is made of requirements/voice-agents.txt when it is not there.
The server of its own decodes greedily, so that the same text has the same samples for every client.

Exit code 0 if every trial has gone well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np
import numpy.typing as npt

from benching.arguments import HelpFormatter
from engine_lib.server.gateway import GatewayProcess
from engine_lib.server.ports import hold_free_port
from engine_lib.server.process import FREE_PORTS, TritonServer
from qwen3_tts_client import Client, RequestOptions
from voice_agents.outcomes import RATE, SENTENCES, TEXT
from voice_in_the_box import VOICE_IN_THE_BOX

ROOT = Path(__file__).resolve().parents[1]
VOICE = "ada"  # of the voice in the box; the plugins' `alloy` means it
REQUIREMENTS = ROOT / "requirements" / "voice-agents.txt"
FRAMEWORKS = {"livekit": "voice_agents.livekit_plugins", "pipecat": "voice_agents.pipecat_services"}
ROUNDING = 2  # of 16-bit samples: other streams in the batch move the last bits
CODED_SECONDS = 0.1  # that a coded file may be longer
FREED_MS = 3000.0  # from an interruption to the end of its stream, with the delay of the server's metrics
WORD_SECONDS = 0.4  # that a word may be told later: a framework counts from when it plays
READY_SECONDS = 60.0
Samples = npt.NDArray[np.int16]


def main() -> int:
    """Run all trials and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--url", help="a gateway that runs (default: one of its own)")
    parser.add_argument("--framework", choices=FRAMEWORKS, action="append", help="only this one; repeatable")
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "voice-agents", metavar="FOLDER", help="of the plugins")
    arguments = parser.parse_args()
    python = installed(arguments.environment)
    with tempfile.TemporaryDirectory(prefix="voice-agents-") as name:
        folder = Path(name)
        if arguments.url:
            outcomes = list(tried(python, arguments.framework, arguments.url, [f"{arguments.url}/metrics"], folder))
            return report(outcomes, {})
        with served(folder) as (server, url):
            references = spoken(server.grpc_port)
            metrics = [f"{url}/metrics", f"http://127.0.0.1:{server.metrics_port}/metrics"]
            outcomes = list(tried(python, arguments.framework, url, metrics, folder))
            return report(outcomes, references)


def installed(folder: Path) -> Path:
    """The interpreter of the plugins' environment, which is made if the lock has changed."""
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {REQUIREMENTS.name} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    return python


@contextmanager
def served(folder: Path) -> Iterator[tuple[TritonServer, str]]:
    """A server that decodes greedily, and the address of a gateway in front of it."""
    checkpoint = folder / "checkpoint"
    shutil.copytree(VOICE_IN_THE_BOX, checkpoint)
    settings = checkpoint / "generation_config.json"
    greedy = json.loads(settings.read_text()) | {"do_sample": False, "subtalker_dosample": False}
    settings.write_text(json.dumps(greedy))
    options = {"model_path": str(checkpoint), "device": "cpu", "max_num_seqs": "8"}
    with TritonServer(options=options, ports=FREE_PORTS, log_file=folder / "server.log") as server, hold_free_port() as held:
        port = held.getsockname()[1]
        with GatewayProcess(server, port, arguments=["--host", "127.0.0.1"]):
            wait_ready(url := f"http://127.0.0.1:{port}")
            yield server, url


def wait_ready(url: str) -> None:
    """Wait until the gateway would speak."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{url}/ready", timeout=READY_SECONDS):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the gateway at {url} was not ready after {READY_SECONDS:g} s")


def spoken(grpc_port: int) -> dict[str, Samples]:
    """What gRPC hears of TEXT.

    `whole`, and `fed`: the text a row a frame, as text that streams in is spoken. With `sentences`: each sentence by itself.
    """
    texts = {"whole": [TEXT], "sentences": list(SENTENCES)}
    heard = {}
    with Client(f"127.0.0.1:{grpc_port}") as client:
        for name, parts in texts.items():
            for layout, is_whole in (("", True), ("fed ", False)):
                options = RequestOptions(voice=VOICE, sampling={"non_streaming_mode": is_whole})
                audio = np.concatenate([client.synthesize(part, timeout=READY_SECONDS, **options).audio for part in parts])
                heard[layout + name] = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    return heard


def tried(python: Path, frameworks: list[str] | None, url: str, metrics: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """The outcomes of all trials as they come."""
    pages = [word for page in metrics for word in ("--metrics", page)]
    for name in frameworks or FRAMEWORKS:
        command = [str(python), "-m", FRAMEWORKS[name], "--url", url, "--folder", str(folder), *pages]
        log, environment = folder / f"{name}.log", os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                yield {"framework": name} | json.loads(line)
        if process.returncode:
            print(log.read_text(), file=sys.stderr)
            raise RuntimeError(f"the trials of {name} ended with code {process.returncode}")


def report(outcomes: list[dict[str, Any]], references: Mapping[str, Samples]) -> int:
    """Print the table; returns the exit code."""
    print("\n| plugin | version | tried | result | first audio ms | freed ms |\n|---|---|---|---|---|---|")
    faults = 0
    for outcome in outcomes:
        fault = fault_of(outcome, references.get(outcome["expected"]))
        faults += bool(fault)
        result = f"FAILED: {fault}" if fault else "; ".join([how(outcome, bool(references)), *outcome["notes"]])
        times = [f"{outcome[name]:.0f}" if outcome[name] is not None else "" for name in ("first_ms", "freed_ms")]
        print("|", " | ".join([f"{outcome['framework']} {outcome['plugin']}", outcome["version"], outcome["what"], result, *times]), "|")
    print(f"\n{len(outcomes)} trials, {faults} failed")
    return 1 if faults or not outcomes else 0


def how(outcome: dict[str, Any], is_compared: bool) -> str:
    """A word for what has gone well."""
    if not outcome["expected"] or not is_compared:
        return "ok"
    return ("samples of gRPC" if outcome["is_exact"] else "duration of gRPC") + (", words timed" if outcome["has_words"] else "")


def fault_of(outcome: dict[str, Any], expected: Samples | None) -> str:
    """What is wrong with it; "" if nothing is."""
    if outcome["error"]:
        return str(outcome["error"])
    if (outcome["freed_ms"] or 0.0) > FREED_MS:
        return f"the stream was open for {outcome['freed_ms']:.0f} ms after the interruption"
    if not outcome["expected"]:
        return ""
    audio = np.frombuffer(Path(outcome["audio"]).read_bytes(), "<i2")
    seconds = len(audio) / outcome["rate"]
    if expected is None:
        return "" if seconds > 1 else f"it has {seconds:.1f} s of audio"
    wanted = len(expected) / RATE
    if not outcome["is_exact"]:
        return "" if wanted <= seconds <= wanted + CODED_SECONDS else f"it has {seconds:.2f} s of audio, gRPC {wanted:.2f} s"
    if len(audio) != len(expected):
        return f"it has {len(audio)} samples, gRPC {len(expected)}"
    if (difference := np.abs(audio.astype(int) - expected).max()) > ROUNDING:
        return f"a sample differs by {difference}"
    return words_fault(outcome["words"], seconds) if outcome["has_words"] else ""


def words_fault(words: list[tuple[str, float]], seconds: float) -> str:
    """What is wrong with the times of the words; "" if nothing is."""
    if [word.strip() for word, _ in words] != TEXT.split():
        return f"the words are {[word for word, _ in words]}"
    times = [time for _, time in words]
    if times != sorted(times) or len(set(times)) < len(times) or times[-1] > seconds + WORD_SECONDS:
        return f"the words begin at {times}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
