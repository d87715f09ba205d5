"""Exit with 0 if every model of a Triton server, or a gateway, is ready, else with 1 and the reason.

    python docker/healthcheck.py
    python docker/healthcheck.py --url http://localhost:8000 --timeout 5
    python docker/healthcheck.py --model qwen3_tts --model talker --model codec_decoder
    python docker/healthcheck.py --gateway

The server's own readiness is not enough: before 26.04 it says nothing of an ensemble that failed to load, and before 26.03 no model is
asked whether it drains or its engine hangs. Both models publish that as qwen3_tts_model_ready, which is read from the port of the metrics;
if nothing answers there, the models are taken at Triton's word.

A gateway is asked on this machine, as its environment says: QWEN3_TTS_GATEWAY_PORT, and over TLS if QWEN3_TTS_GATEWAY_CERTIFICATE is set.
Its certificate is not verified, because it has another name than this machine. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_METRICS_URL = "http://127.0.0.1:8002/metrics"
GATEWAY = "QWEN3_TTS_GATEWAY_"
MODEL_READY = re.compile(r'^qwen3_tts_model_ready\{.*\bmodel="([^"]+)".*\} (\S+)$', re.MULTILINE)
UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
UNVERIFIED.check_hostname, UNVERIFIED.verify_mode = False, ssl.CERT_NONE
# A proxy is no way to one's own machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=UNVERIFIED))


def unready(url: str, timeout: float, models: Sequence[str] = ()) -> list[str]:
    """What is not ready, each with its reason; nothing if all is well.

    Args:
        models: that must be ready; none: all of the repository.

    Raises:
        OSError, HTTPException: the server does not answer within `timeout` seconds, or not in HTTP.
        ValueError: its answer is not Triton's.
    """
    index = json.loads(_answer(f"{url}/v2/repository/index", timeout, b"{}"))
    if not isinstance(index, list) or not all(isinstance(entry, dict) and "name" in entry for entry in index):
        raise ValueError("what answers is no Triton server")
    reasons = [f"{name}: not in the model repository" for name in models if name not in {entry["name"] for entry in index}]
    index = [entry for entry in index if not models or entry["name"] in models]
    loaded = [entry["name"] for entry in index if entry.get("state") == "READY"]
    reasons += [
        f"{entry['name']}: {entry.get('reason') or entry.get('state') or 'not loaded; see the log of the server'}"
        for entry in index
        if entry["name"] not in loaded
    ]
    if not index and not models:
        reasons.append("the server has no models")
    for path in ["v2/health/ready", *(f"v2/models/{name}/ready" for name in loaded)]:
        try:
            _answer(f"{url}/{path}", timeout)
        except urllib.error.HTTPError as error:
            reasons.append(f"{path}: {error.code}")
    return reasons


def not_serving(metrics_url: str, timeout: float) -> list[str]:
    """The models that would not serve a new request, by their own metric, each with a sentence."""
    try:
        metrics = _answer(metrics_url, timeout).decode()
    except (OSError, http.client.HTTPException, ValueError):
        return []
    # A model that has been loaded again has a series more while its old instance ends.
    serve: dict[str, bool] = {}
    for model, value in MODEL_READY.findall(metrics):
        serve[model] = serve.get(model, False) or float(value) == 1
    return [f"{model}: it drains, or its engine hangs or has ended" for model, is_serving in serve.items() if not is_serving]


def gateway_url() -> str:
    """Where the gateway of this environment listens."""
    scheme = "https" if os.environ.get(f"{GATEWAY}CERTIFICATE") else "http"
    return f"{scheme}://127.0.0.1:{os.environ.get(f'{GATEWAY}PORT') or 8880}"


def gateway_unready(url: str, timeout: float) -> list[str]:
    """Why the gateway is not ready; nothing if it is.

    Raises:
        OSError: it does not answer within `timeout` seconds.
    """
    try:
        _answer(f"{url}/ready", timeout)
    except urllib.error.HTTPError as error:
        with contextlib.suppress(ValueError, AttributeError):
            if status := json.loads(error.read()).get("status"):
                return [f"gateway: {status}"]
        return [f"gateway: what answers is none ({error.code}); give its URL, http://HOST:8880"]
    return []


def _answer(url: str, timeout: float, body: bytes | None = None) -> bytes:
    with OPENER.open(urllib.request.Request(url, data=body), timeout=timeout) as response:
        content: bytes = response.read()
    return content


def words_of(error: Exception) -> str:
    """What is wrong, in one line, with what to do if the port or the scheme is another's."""
    if isinstance(error, http.client.BadStatusLine):  # its text is what came, such as the bytes of gRPC
        return "what answers speaks no HTTP; give the HTTP port (8000 unless set), and https:// if it has a certificate"
    text = str(error) or type(error).__name__
    if "unknown url type" in text or "no host given" in text:
        return "is no URL; give http://HOST:PORT"
    return f"{text}; does this port speak TLS?" if isinstance(getattr(error, "reason", None), ssl.SSLError) else text


def main() -> int:
    """Read the command line, ask the server, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("HEALTHCHECK_URL", DEFAULT_URL), help=f"default {DEFAULT_URL}, or HEALTHCHECK_URL")
    parser.add_argument(
        "--metrics-url",
        default=os.environ.get("HEALTHCHECK_METRICS_URL", DEFAULT_METRICS_URL),
        help=f"default {DEFAULT_METRICS_URL}, or HEALTHCHECK_METRICS_URL",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="a model that must be ready, if the server does not load all (--model-control-mode=explicit); may be repeated "
        "(default: all, or HEALTHCHECK_MODELS, names with spaces between)",
    )
    parser.add_argument(
        "--gateway", nargs="?", const=gateway_url(), metavar="URL", help="ask a gateway instead; default that of the environment"
    )
    parser.add_argument("--timeout", type=float, default=4.0, metavar="SECONDS", help="of each question (default 4)")
    arguments = parser.parse_args()
    try:
        if arguments.gateway:
            reasons = gateway_unready(arguments.gateway, arguments.timeout)
        else:
            models = arguments.model or os.environ.get("HEALTHCHECK_MODELS", "").split()
            reasons = unready(arguments.url, arguments.timeout, models) or not_serving(arguments.metrics_url, arguments.timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reasons = [f"{arguments.gateway or arguments.url}: {words_of(error)}"]
    print("\n".join(reasons) or "ready")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
