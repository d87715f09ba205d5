"""VoicesService: list, show, add, blend and remove voices: the work of the model `voices`.

The folder of the store is shared, so voices are listed and removed here. The encoders are beside the talker, on its device: to
add a voice, this model sends a control request to the talker of a base checkpoint, which encodes and stores it
(voice_additions.py). Other requests are answered one after the other on Triton's own thread. Built-in speakers are read from each
checkpoint's config.json. No type of Triton's is used here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engine_lib.admission.turn import TURN_NAMES
from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.checkpoint_files import checkpoint_folder
from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.serving.backend import Reply, TritonBackend
from engine_lib.serving.helper_metrics import HelperMetrics
from engine_lib.serving.request_values import RequestValues, deadline_of, turn_of
from engine_lib.serving.served import ServedCheckpoint, served_checkpoints
from engine_lib.serving.voice_additions import SHUTDOWN_SECONDS, Addition, VoiceAdditions
from engine_lib.speech.blend import EXPECTED, MAX_LENGTH, Blend
from engine_lib.speech.lexicon import MAX_JSON_LENGTH
from engine_lib.voices.reference_audio import MAX_SAMPLE_RATE
from engine_lib.voices.store import VoiceStore
from engine_lib.voices.store_checks import MAX_CONSENT_LENGTH, checked_name
from engine_lib.voices.stored_voice import StoredVoice, checked_lexicon

REFERENCE = ("reference_audio", "reference_sample_rate", "reference_text", "x_vector_only")
FIELDS = ("action", "name", "consent", "model", "blend", "lexicon", *REFERENCE, *TURN_NAMES)
ACTIONS = ("list", "show", "add", "blend", "remove")
# `show` gives these facts; `list` leaves them out, because it serves clients that only look for a name.
PRIVATE = ("consent", "reference_text", "sha256", "lexicon")

Facts = dict[str, Any]


class VoicesService:
    """The voices of one server: one JSON answer for each request."""

    def __init__(self, backend: TritonBackend, config: EngineConfig, args: Mapping[str, str]) -> None:
        """`args`: the arguments of `initialize`.

        Raises:
            ConfigError, CheckpointError: the store cannot be used, or a checkpoint's config.json cannot be read.
        """
        self._backend = backend
        own = _read(config.model_path)
        self._served = served_checkpoints(args, own, config.model_path)
        self._configs = {checkpoint.ensemble: _read(checkpoint.model_path) for checkpoint in self._served}
        self._store = VoiceStore.of(config)
        self._max_reference_seconds = config.reference_max_seconds
        self._additions = VoiceAdditions(backend)
        self._metrics = HelperMetrics(backend)
        backend.guard.watch(holds_streams=False)

    def handle(self, request: Any) -> None:
        """Carry out one request and answer it, or let it wait if it adds a voice."""
        arrived_at, reply = time.monotonic(), self._backend.reply(request)
        actions: dict[str, Callable[[RequestValues], Facts]] = {
            "list": self._list,
            "show": self._show,
            "blend": self._blend,
            "remove": self._remove,
        }
        try:
            values = RequestValues(self._backend.tensors(request), self._backend.parameters(request))
            values.report_unknown(FIELDS)
            action = values.string("action") or ""
            if action == "add":
                self._queue(values, reply, arrived_at, deadline_of(request, arrived_at))
                return
            if action not in actions:
                raise InvalidRequestError("action", f"{action[:100]!r} is unknown; give one of {', '.join(ACTIONS)}")
            result = actions[action](values)
        except Exception as error:
            reply.refuse(error)
        else:
            _answer(reply, result)
        self._metrics.answered(time.monotonic() - arrived_at)

    def shutdown(self) -> None:
        """End. Triton calls this when every request has been answered."""
        self._backend.guard.release()
        self._additions.shutdown(SHUTDOWN_SECONDS)
        self._metrics.close()

    def _list(self, _values: RequestValues) -> Facts:
        voices = self._built_in()
        stored, refused = self._store.list() if self._store else ([], {})
        voices += [{name: value for name, value in self._stored(voice).items() if name not in PRIVATE} for voice in stored]
        models = [
            {"name": ensemble, "kind": config.kind, "languages": config.talker.languages} for ensemble, config in self._configs.items()
        ]
        return {"voices": voices, "refused": refused, "has_store": self._store is not None, "models": models}

    def _show(self, values: RequestValues) -> Facts:
        wanted = (values.string("name") or "").lower()
        for voice in self._built_in():
            if voice["name"] == wanted:  # in any writing, which a stored voice may not have
                return voice
        name = self._name(values)
        return self._stored(self._open_store().show(name))

    def _queue(self, values: RequestValues, reply: Reply, arrived_at: float, deadline: float | None) -> None:
        """Check a request to add a voice, as far as it can be without the talker, and let it wait.

        Raises:
            InvalidRequestError, OverloadedError, Qwen3TTSError: it is refused.
        """
        if values.has("blend"):
            raise InvalidRequestError("blend", "is given to add a recording; leave it out, or give the action blend, without a recording")
        store, name = self._open_store(), self._new_name(values)
        consent, lexicon = values.string("consent", MAX_CONSENT_LENGTH) or "", _lexicon(values)
        store.check_addition(name, consent)
        talker, turn = self._talker(values.string("model")), turn_of(values)
        num_samples = self._num_samples(values)
        # Copies, because the tensors are the server's memory.
        tensors = {field: values.tensors[field].copy() for field in REFERENCE if field in values.tensors}
        parameters = {field: value for field, value in values.parameters.items() if field in (*REFERENCE, *TURN_NAMES)}

        def carry_out(timeout: int) -> None:
            order = {"name": name, "consent": consent, "lexicon": lexicon}
            packed = np.array([json.dumps(order, ensure_ascii=False).encode()], np.object_)
            try:
                self._backend.control(talker, "store_voice", packed, tensors, parameters, timeout=timeout)
                result = self._stored(store.show(name))
            except Exception as error:
                reply.refuse(error)
            else:
                _answer(reply, result)
            self._metrics.answered(time.monotonic() - arrived_at)

        def refuse(error: Exception) -> None:
            reply.refuse(error)
            self._metrics.answered(time.monotonic() - arrived_at)

        self._additions.put(Addition(carry_out, refuse, reply.is_cancelled, deadline), turn, num_samples)

    def _num_samples(self, values: RequestValues) -> int:
        """Samples of the recording, which the talker checks; only a size that it refuses is refused here, before it is copied."""
        audio, limit = values.samples("reference_audio"), self._max_reference_seconds
        if audio is not None and len(audio) > limit * MAX_SAMPLE_RATE:
            raise InvalidRequestError(
                "reference_audio", f"has {len(audio)} samples, more than {limit:g} s at any rate; give a shorter recording"
            )
        return 0 if audio is None else len(audio)

    def _blend(self, values: RequestValues) -> Facts:
        """Store a blend of stored voices, which needs no encoder."""
        text = values.string("blend", MAX_LENGTH)
        if not text:
            raise InvalidRequestError("blend", f"is missing; {EXPECTED}")
        if values.has("reference_audio"):
            raise InvalidRequestError("reference_audio", "is given with a blend, which has no recording; leave it out")
        stored = self._store.names() if self._store else []
        built_in = {voice["name"] for voice in self._built_in()}
        for part in Blend.parse(text, "blend").names:
            if part in built_in and part not in stored:
                advice = "only stored voices make a stored one; give such a blend as the voice of each request"
                raise InvalidRequestError("blend", f"{part[:100]!r} is a built-in speaker; {advice}")
        store, name = self._open_store(), self._new_name(values)
        consent = values.string("consent", MAX_CONSENT_LENGTH) or ""
        return self._stored(store.add_blend(name, text, consent=consent, lexicon=_lexicon(values)))

    def _remove(self, values: RequestValues) -> Facts:
        name = self._name(values)
        self._open_store().remove(name)
        return {"name": name, "removed": True}

    def _name(self, values: RequestValues) -> str:
        name = values.string("name")
        if name is None:
            raise InvalidRequestError("name", "is missing; give the name of a voice")
        return checked_name(name, "name")

    def _new_name(self, values: RequestValues) -> str:
        """The name of a voice to be stored."""
        name = self._name(values)
        if any(voice["name"] == name for voice in self._built_in()):
            raise InvalidRequestError("name", f"{name!r} is a built-in speaker of this server; choose another name")
        return name

    def _open_store(self) -> VoiceStore:
        if self._store is None:
            raise InvalidRequestError("name", "this server stores no voices; start it with the option voice_store=FOLDER")
        return self._store

    def _talker(self, ensemble: str | None) -> str:
        """The talker that encodes a voice: of `ensemble`, or of the first base checkpoint."""
        able = [checkpoint for checkpoint in self._served if checkpoint.kind == "base"]
        if not able:
            kinds = ", ".join(checkpoint.kind for checkpoint in self._served)
            raise InvalidRequestError(
                "model", f"only a base checkpoint clones voices, and this server serves {kinds}; add the voice on another"
            )
        for checkpoint in able:
            if ensemble in (None, checkpoint.ensemble):
                return checkpoint.talker
        raise InvalidRequestError("model", f"{ensemble!r:.100} clones no voices; give one of {_ensembles(able)}")

    def _built_in(self) -> list[Facts]:
        """The speakers of all custom_voice checkpoints, by name."""
        models: dict[str, list[str]] = {}
        for ensemble, config in self._configs.items():
            for speaker in config.talker.speaker_ids if config.kind == "custom_voice" else ():
                models.setdefault(speaker, []).append(ensemble)
        return [{"name": name, "source": "built-in", "models": models[name]} for name in sorted(models)]

    def _stored(self, voice: StoredVoice) -> Facts:
        """The facts about a stored voice, and the models that can speak with it."""
        models = [
            ensemble
            for ensemble, config in self._configs.items()
            if config.kind == "base"
            and config.talker.shape.hidden_size == voice.enc_dim
            and (voice.x_vector_only or config.talker.num_code_groups == voice.num_code_groups)
        ]
        facts = voice.facts
        if voice.blend is not None:  # it has no recording
            del facts["reference_seconds"], facts["reference_sample_rate"]
        if voice.lexicon is not None:
            facts["lexicon_words"] = len(voice.lexicon)
        return {"name": facts.pop("name"), "source": "stored", "models": models, **facts}


def _read(model_path: str) -> CheckpointConfig:
    return CheckpointConfig.read(checkpoint_folder(model_path))


def _answer(reply: Reply, result: Facts) -> None:
    reply.send({"result": np.array([json.dumps(result, ensure_ascii=False).encode()], np.object_)}, is_final=True)


def _lexicon(values: RequestValues) -> dict[str, str] | None:
    """The lexicon of a voice that is to be stored."""
    return checked_lexicon(values.json_object("lexicon", MAX_JSON_LENGTH))


def _ensembles(served: list[ServedCheckpoint]) -> str:
    return ", ".join(checkpoint.ensemble for checkpoint in served)
