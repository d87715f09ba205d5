"""Certificates of our own making."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(certificate: Path, key: Path, *, password: str = "") -> None:
    """Write a certificate for 127.0.0.1 that no authority has signed, and its key, encrypted if there is a `password`."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-subj", "/CN=a test", "-addext", "subjectAltName=IP:127.0.0.1"]
    secret = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *curve, *names, *secret, *files], check=True, capture_output=True)
