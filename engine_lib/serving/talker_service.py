"""TalkerService: requests in, messages for the codec out, without Triton's types.

`handle` runs on Triton's thread and returns once the request is queued or refused. Every accepted request ends with one message
that has no frames, is final and carries FINAL.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.delivery import Delivery, OnRunaway
from engine_lib.errors import EngineDeadError
from engine_lib.prompt import PromptBuilder
from engine_lib.serving.backend import Reply, Tensors, TritonBackend
from engine_lib.serving.client_watch import ClientWatch
from engine_lib.serving.codes_channel import CLAIMED_FROM_STREAMS, CodesOutlet
from engine_lib.serving.control_requests import ControlRequests
from engine_lib.serving.helpers import Helpers
from engine_lib.serving.parse import RequestParser
from engine_lib.serving.progress import Progress
from engine_lib.serving.request_values import deadline_of
from engine_lib.serving.request_voices import RequestVoices
from engine_lib.serving.script_stream import ScriptStream
from engine_lib.serving.served import OFFLINE_SUFFIX, VOICES, served_checkpoints
from engine_lib.serving.service import SHUTDOWN_SECONDS, EngineService, has_own_process
from engine_lib.serving.session_requests import SessionRequests
from engine_lib.serving.talker_metrics import TalkerMetrics
from engine_lib.serving.talker_stream import TalkerParts, TalkerStream
from engine_lib.serving.warm_up import warm_up_talker
from engine_lib.speech.compiler import TextCompiler
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine

SENDER_THREADS = 2  # its messages are small; each further thread takes the GIL from those that accept requests


class TalkerService(EngineService):
    """The talker of one server."""

    _engine: BaseTalkerEngine[Any]

    def __init__(self, backend: TritonBackend, config: EngineConfig, args: Mapping[str, str]) -> None:
        """Load the checkpoint and start the engine. `args`: the arguments of `initialize`.

        Raises:
            Qwen3TTSError: the model must not load.
        """
        super().__init__(backend, config, sender_threads=SENDER_THREADS)
        checkpoint = Checkpoint(config.model_path)
        prompts = PromptBuilder(checkpoint, config.max_text_length)
        served = served_checkpoints(args, checkpoint.config, config.model_path)
        self._voices = RequestVoices(checkpoint, config, served)
        self._parser = RequestParser(
            kind=checkpoint.config.kind,
            sampling=checkpoint.sampling_defaults(),
            delivery=Delivery.default(config, OnRunaway.STOP),
            texts=TextCompiler.of(config, checkpoint.config.piece_length),
            max_text_length=config.max_text_length,
            max_reference_seconds=config.reference_max_seconds,
            served=served,
            lexicon_of=self._voices.lexicon,
        )
        self._engine = _talker_engine(checkpoint, config)
        with self._started():
            warm_up_talker(self._engine, prompts, self._sender, backend.secret)
        streams: dict[str, TalkerStream] = {}
        self._voices.add_metrics(self._metrics)
        metrics = TalkerMetrics(self._metrics, self._engine, streams, backend.refusals)
        self._watch_helpers([checkpoint.ensemble + OFFLINE_SUFFIX for checkpoint in served if checkpoint.talker == backend.name])
        self._outlet = _outlet(backend, streams, CLAIMED_FROM_STREAMS.get(config.codes_channel))
        self._parts = TalkerParts(
            backend.name, backend.secret, self._engine, prompts, self._voices, self._sender, metrics, streams, {}, self._outlet
        )
        self._control_requests = ControlRequests(backend, self._parts, self._parser)
        self._session_requests = SessionRequests(self._parts.sessions, config.max_text_length)
        self._client_watch = ClientWatch(self._sender, streams, self._parts.orders)
        progress = Progress(lambda: self._engine.has_work, lambda: self._engine.stats().num_steps)
        self._watch(streams, progress, drain_seconds=config.drain_seconds)

    def handle(self, request: Any) -> None:
        """Obey a control request of the server's or a client's for its open stream; queue any other, or refuse it."""
        arrived_at = time.monotonic()
        reply = self._backend.reply(request)
        try:
            tensors, parameters = self._backend.tensors(request), self._backend.parameters(request)
            deadline = deadline_of(request, arrived_at)
            if self._control_requests.handle(tensors, parameters, deadline, reply):
                return
            if not self._session_requests.handle(tensors, parameters, reply):
                self._accept(tensors, parameters, deadline, reply, arrived_at)
        except Exception as error:
            reply.refuse(error)

    def _accept(self, tensors: Tensors, parameters: str, deadline: float | None, reply: Reply, arrived_at: float) -> None:
        if self._lifecycle.is_draining:
            raise EngineDeadError("the server is shutting down; use another one")
        speech = self._parser.parse(tensors, parameters)
        if speech.script is None:
            voice = self._voices.of_request(speech)
            TalkerStream(self._parts, reply, speech, arrived_at, deadline).begin(voice)
        else:
            voices = self._voices.of_script(speech, speech.script)
            ScriptStream(self._parts, reply, speech, arrived_at, deadline, script=speech.script, voices=voices).begin(voices.get(None))

    def _watch_helpers(self, offline: list[str]) -> None:
        helpers = Helpers(os.getppid())
        reads = {model: partial(helpers.has_died, model) for model in (*offline, VOICES)}
        self._metrics.gauges("helper_died", "1 if the process of a helper model has died: the server must be restarted", "helper", reads)

    def shutdown(self) -> None:
        """End every open stream, the voices, the engine and all threads, within a few seconds."""
        self._client_watch.stop(SHUTDOWN_SECONDS)
        self._voices.shutdown(SHUTDOWN_SECONDS)
        super().shutdown()
        if self._outlet is not None:
            self._outlet.close(SHUTDOWN_SECONDS)


def _outlet(backend: TritonBackend, streams: Mapping[str, TalkerStream], busy_from: int | None) -> CodesOutlet | None:
    """The talker's end of the codes channel; None if the codec claims nothing, or on a system without such sockets, which is logged."""

    def on_claim(stream_key: str) -> None:
        if (stream := streams.get(stream_key)) is not None:
            stream.on_claim()

    if busy_from is None:
        return None
    try:
        return CodesOutlet(backend.secret, streams, on_claim, busy_from=busy_from)
    except OSError as error:
        backend.log.log_warn(f"codes_channel: {error.strerror}; all codes go through Triton")
        return None


def _talker_engine(checkpoint: Checkpoint, config: EngineConfig) -> BaseTalkerEngine[Any]:
    """Load the engine in the place that `talker_isolation` names."""
    own_process = has_own_process(config.talker_isolation, config.device)
    return RemoteTalkerEngine(checkpoint, config) if own_process else TalkerEngine(checkpoint, config)
