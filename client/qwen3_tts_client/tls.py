"""TLS of a connection, and who calls. The environment names the files, alike for every command."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import grpc  # type: ignore[import-untyped]

from qwen3_tts_client.errors import InvalidRequest

# Certificates (PEM) that the server's has to lead to; without it those of public authorities, which gRPC brings.
CA = "QWEN3_TTS_TLS_CA"
# The client's own certificate and its key (PEM), for a server that asks who calls.
CERTIFICATE, KEY = "QWEN3_TTS_TLS_CERTIFICATE", "QWEN3_TTS_TLS_KEY"
# Every call says "authorization: Bearer ..." to a proxy that asks for it.
TOKEN = "QWEN3_TTS_TOKEN"


def credentials() -> grpc.ChannelCredentials:
    """What the environment says.

    Raises:
        InvalidRequest: a file cannot be read or used, where gRPC would say only that it cannot connect; or the token cannot be sent.
    """
    ca, certificate, key = (os.environ.get(name, "") for name in (CA, CERTIFICATE, KEY))
    if bool(certificate) != bool(key):
        given, missing = (CERTIFICATE, KEY) if certificate else (KEY, CERTIFICATE)
        raise _not_allowed(missing, f"is not set, and {given} is; give both, or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca:
        _check(CA, ca)
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise _not_allowed(CA, f"{ca} holds no certificates that can be read (PEM): {error}") from None
    if certificate:
        _check(CERTIFICATE, certificate)
        _check(KEY, key)
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise _not_allowed(CERTIFICATE, f"{certificate} is not used with {key} ({KEY}): {error}") from None
    secure = grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in (ca, key, certificate)))
    if not (token := os.environ.get(TOKEN, "").strip()):
        return secure
    if not (token.isascii() and token.isprintable()):
        raise _not_allowed(TOKEN, "holds characters that a header cannot have; give printable ASCII")
    return grpc.composite_channel_credentials(secure, grpc.access_token_call_credentials(token))


def _check(variable: str, file: str) -> None:
    try:
        Path(file).read_bytes()
    except OSError as error:
        raise _not_allowed(variable, f"{file} cannot be read: {error.strerror}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted, which gRPC cannot read; give one without a password")


def _not_allowed(variable: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{variable}: {problem}", field=variable)
