"""Sends hostile requests and says how each was answered."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from fuzzing.attacks import Attack, GrpcAttack, HttpAttack
from qwen3_tts_client.channel import CHANNEL_OPTIONS, stream_call

CODE = re.compile(r"(?:in ensemble '[^']*', )?(?:Failed to process the request\(s\)[^:]*: )?([A-Z][A-Z_]+): ")
INTERNAL = "refused, INTERNAL"
BY_TRITON = "refused by Triton"
LEFT = "left"
KEPT_EXAMPLES, MESSAGE_LENGTH = 20, 60


@dataclass
class Outcomes:
    """How requests were answered, by model and kind of answer.

    Attributes:
        answers: number of requests for each.
        messages: how often Triton itself refused a request of a model with a message that begins so.
        bugs: some requests that were not answered, or with an error of the server.
        longest_silence: seconds until a stream began, or between two of its parts, at most. (A whole utterance takes its time.)
        longest_silence_of: the request.
    """

    answers: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    bugs: list[str] = field(default_factory=list)
    longest_silence: float = 0.0
    longest_silence_of: str = ""
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, attack: Attack, answer: str, message: str, silence: float) -> None:
        """Count one answer; `message` is the server's text, `silence` the longest time in which nothing came."""
        with self._lock:
            if silence > self.longest_silence:
                self.longest_silence, self.longest_silence_of = silence, describe(attack)[:1500]
            self.answers[f"{attack.model}: {answer}"] += 1
            if answer == BY_TRITON:
                self.messages[f"{attack.model}: {message[:MESSAGE_LENGTH]}"] += 1
            if answer in ("no answer", "disconnected", INTERNAL) and len(self.bugs) < KEPT_EXAMPLES:
                self.bugs.append(f"{answer}: {message[:300]} | {describe(attack)[:1500]}")


class Sender:
    """One client; a thread has its own."""

    def __init__(self, grpc_address: str, http_address: str, outcomes: Outcomes, patience: float) -> None:
        """`patience`: seconds without an answer after which a request counts as not answered."""
        self._channel = grpc.insecure_channel(grpc_address, CHANNEL_OPTIONS)
        self._stream = stream_call(self._channel)
        self._unary = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        self._http_address, self._outcomes, self._patience = http_address, outcomes, patience
        self._connections: set[http.client.HTTPConnection] = set()
        self._has_left = False

    def send(self, attack: Attack) -> None:
        """Send a request, read its whole answer and count it."""
        heard = _Silence()
        answer, message = LEFT, ""
        if not self._has_left:
            answer, message = self._http(attack, heard) if isinstance(attack, HttpAttack) else self._grpc(attack, heard)
        if self._has_left:
            answer, message = LEFT, ""
        else:
            heard.ends()
        self._outcomes.add(attack, answer, message, heard.longest if "offline" not in attack.model else 0.0)

    def leave(self) -> None:
        """Give up what is under way, and all that comes: it counts as `left`."""
        self._has_left = True
        self._channel.close()
        for connection in list(self._connections):
            with suppress(OSError, AttributeError):  # it has no socket yet, or none any more
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _grpc(self, attack: GrpcAttack, heard: _Silence) -> tuple[str, str]:
        try:
            if not attack.streams:
                self._unary(attack.request, timeout=self._patience)
                return "answered", ""
            call, message = self._stream(attack.request, timeout=self._patience), ""
            for response in call:  # to the end after an error, too: what clients leave earlier, Triton 24.10 never frees
                heard.ends()
                message = message or response.error_message
                if attack.leaves and not message and not response.infer_response.parameters["triton_final_response"].bool_param:
                    call.cancel()
                    return LEFT, ""
            if message:
                return _kind(message), message
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return "no answer", error.details()
            if code is grpc.StatusCode.UNAVAILABLE and not CODE.match(error.details() or ""):
                return "disconnected", error.details()
            return _kind(error.details() or ""), error.details() or ""
        except ValueError:  # `leave` has just closed the channel
            return LEFT, ""
        return "answered", ""

    def _http(self, attack: HttpAttack, heard: _Silence) -> tuple[str, str]:
        connection = http.client.HTTPConnection(self._http_address, timeout=self._patience)
        self._connections.add(connection)
        try:
            connection.connect()
            if self._has_left:  # `leave` came before there was a socket to shut down
                return LEFT, ""
            connection.request("POST", attack.path, attack.body, {"Content-Type": "application/json"})
            response, parts = connection.getresponse(), []
            while part := response.read1():
                heard.ends()
                parts.append(part)
            content = b"".join(parts).decode(errors="replace")
        except TimeoutError:
            return "no answer", ""
        except (OSError, http.client.HTTPException) as error:
            return "disconnected", str(error)
        finally:
            self._connections.discard(connection)
            connection.close()
        found = re.search(r'"error":"((?:[^"\\]|\\.)*)"', content)
        if found and (message := json.loads(f'"{found[1]}"', strict=False)):
            return _kind(message), message
        return "answered", ""


class _Silence:
    """The longest time in which nothing came of an answer, in seconds."""

    def __init__(self) -> None:
        self.longest, self._since = 0.0, time.monotonic()

    def ends(self) -> None:
        """Something has come."""
        now = time.monotonic()
        self.longest, self._since = max(self.longest, now - self._since), now


def _kind(message: str) -> str:
    found = CODE.match(message)
    return f"refused, {found[1]}" if found else BY_TRITON


def describe(attack: Attack) -> str:
    """The request in one line."""
    if isinstance(attack, HttpAttack):
        return f"POST {attack.path} {attack.body[:1000]!r}"
    return " ".join(str(attack.request).split())
