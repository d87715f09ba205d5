"""VoiceStore: cloned voices in a folder that restarts, processes and servers share.

A voice is two files: NAME.safetensors with the tensors for the talker (speaker embedding and reference codes, never the audio), and
NAME.json with the facts about it and the SHA-256 of the other. Both are written under another name and renamed, the JSON last: a
voice exists once its JSON does. What a killed writer has left is removed by the next one, or at a start. The content of the folder is
not trusted: links, odd files and all that stored_voice.py refuses are refused by name, and the other voices stay usable. No error quotes
a text of the store.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError, InvalidRequestError, NotFoundError, StoreError, nearest
from engine_lib.speech.blend import Blend, of_part
from engine_lib.speech.lexicon import Lexicon
from engine_lib.voices.folder import partial_files, write_file, writing
from engine_lib.voices.store_checks import MAX_CONSENT_LENGTH, NAME_PATTERN, check_consent, checked_name
from engine_lib.voices.stored_voice import (
    FACTS_SUFFIX,
    TENSORS_SUFFIX,
    Arrays,
    RefusedError,
    StoredVoice,
    checked_lexicon,
    digest,
    is_of_a_voice,
    pack_tensors,
)

if TYPE_CHECKING:
    from engine_lib.voices.clone_prompt import VoiceClonePromptItem

MAX_ATTEMPTS = 3  # to read a voice while another process replaces it
ORPHAN_SECONDS = 600.0  # that tensors may lie there before their JSON: a backup that is copied back keeps no order


class VoiceStore:
    """The voices of one folder, which any number of objects and processes may share. Methods may be called from any thread."""

    def __init__(self, folder: str | Path, *, max_voices: int, max_voice_bytes: int) -> None:
        """
        Args:
            folder: created if missing, private to its owner.
            max_voices: most voices it may hold.
            max_voice_bytes: largest size of each of a voice's two files; larger ones are neither written nor read.

        Raises:
            ConfigError: the folder cannot be created or read.
        """
        self.folder, self.max_voices, self.max_voice_bytes = Path(os.path.expanduser(folder)), max_voices, max_voice_bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.scandir(self.folder).close()
        except OSError as error:
            raise ConfigError(
                f"voice_store: {str(folder)!r} cannot be used: {error.strerror}; name a folder this process may read"
            ) from None
        self._lock = threading.Lock()
        # By name: the state of the files, the checkpoint, the voice and its lexicon.
        self._loaded: dict[str, tuple[object, CheckpointConfig, VoiceClonePromptItem, Lexicon]] = {}
        if _orphans(self.folder) or partial_files(self.folder):
            with suppress(StoreError), writing(self.folder, wait=False):  # a folder that is only read, or a busy one, may keep them
                _remove_orphans(self.folder)

    @classmethod
    def of(cls, config: EngineConfig) -> VoiceStore | None:
        """The store that the options name; None if they name none.

        Raises:
            ConfigError: the folder cannot be created or read.
        """
        if not config.voice_store:
            return None
        return cls(config.voice_store, max_voices=config.voice_store_max_voices, max_voice_bytes=config.voice_store_max_bytes)

    def names(self) -> list[str]:
        """Names of all voices, usable or not, sorted.

        Raises:
            StoreError: the folder is gone.
        """
        try:
            files = os.listdir(self.folder)
        except OSError as error:
            raise StoreError(f"voice_store: the folder cannot be read: {error.strerror}; ask the operator of the server") from None
        stems = (file.removesuffix(FACTS_SUFFIX) for file in files if file.endswith(FACTS_SUFFIX))
        return sorted(stem for stem in stems if NAME_PATTERN.fullmatch(stem))

    def list(self) -> tuple[list[StoredVoice], dict[str, str]]:
        """All usable voices, and for each other name the reason why it is refused."""
        voices: list[StoredVoice] = []
        refused: dict[str, str] = {}
        for name in self.names():
            try:
                voices.append(self._read(name)[0])
            except FileNotFoundError:
                continue  # removed meanwhile
            except RefusedError as error:
                refused[name] = str(error)
        return voices, refused

    def show(self, name: str) -> StoredVoice:
        """The facts about one voice.

        Raises:
            InvalidRequestError: there is no such voice, or its files are refused.
        """
        return self._found(checked_name(name, "name"), "name")[0]

    def load(self, name: str, config: CheckpointConfig) -> VoiceClonePromptItem:
        """The voice `name` for a checkpoint of `config`. Its files are read again only after a change.

        Raises:
            InvalidRequestError: there is no such voice, its files are refused, or it does not fit the checkpoint.
        """
        return self._load(name, config)[0]

    def lexicon(self, name: str, config: CheckpointConfig) -> Lexicon:
        """The lexicon of the voice `name`, perhaps empty. Arguments and errors are those of `load`."""
        return self._load(name, config)[1]

    def _load(self, name: str, config: CheckpointConfig) -> tuple[VoiceClonePromptItem, Lexicon]:
        name = checked_name(name)
        seen = self._seen(name)
        with self._lock:
            known = self._loaded.get(name)
        if known is not None and known[0] == seen and known[1] is config:
            return known[2:]
        voice, arrays = self._found(name, "voice")
        item, lexicon = voice.item(arrays, config), Lexicon(voice.lexicon or {})
        with self._lock:
            if len(self._loaded) >= self.max_voices:
                self._loaded.clear()
            self._loaded[name] = (seen, config, item, lexicon)
        return item, lexicon

    def check_addition(self, name: str, consent: str) -> None:
        """Check these as `add` does, before the voice is encoded.

        Raises:
            InvalidRequestError: as `add`.
        """
        name, names = checked_name(name, "name"), self.names()
        check_consent(consent)
        if name in names:
            raise InvalidRequestError("name", f"{name!r} is taken; remove that voice first, or choose another name")
        if len(names) >= self.max_voices:
            full = f"the store holds {len(names)} voices and at most {self.max_voices} (voice_store_max_voices) are allowed"
            raise InvalidRequestError("name", f"{name!r} cannot be added: {full}; remove one first")

    def add(
        self,
        name: str,
        item: VoiceClonePromptItem,
        *,
        consent: str,
        reference_seconds: float,
        reference_sample_rate: int,
        made_by: str,
        lexicon: Mapping[str, str] | None = None,
    ) -> StoredVoice:
        """Store `item`, which has been checked against the checkpoint `made_by`.

        Raises:
            InvalidRequestError: the name, the consent or the lexicon is not allowed, the name is taken, the store is full, or the voice is
                too large.
            StoreError: the folder cannot be written, or another process keeps it locked.
        """
        self.check_addition(name, consent)
        tensors = pack_tensors(item.ref_spk_embedding.numpy(), None if item.ref_code is None else item.ref_code.numpy())
        voice = StoredVoice(
            name=name.lower(),
            created=_now(),
            consent=consent,
            reference_text=item.ref_text,
            reference_seconds=round(reference_seconds, 3),
            reference_sample_rate=reference_sample_rate,
            x_vector_only=item.x_vector_only_mode,
            made_by=made_by,
            enc_dim=len(item.ref_spk_embedding),
            num_code_groups=0 if item.ref_code is None else item.ref_code.shape[1],
            sha256=digest(tensors),
            lexicon=checked_lexicon(lexicon),
        )
        self._put(voice, tensors, "reference_audio")
        return voice

    def add_blend(self, name: str, blend: str, *, consent: str = "", lexicon: Mapping[str, str] | None = None) -> StoredVoice:
        """Store a blend of stored voices, by their speaker embeddings alone. It stays when they are removed.

        Args:
            blend: as in `anna:0.7+ben:0.3`; see engine_lib/speech/blend.py.
            consent: "" keeps the consents of the voices.
            lexicon: of the blend; those of the voices are not taken over.

        Raises:
            InvalidRequestError: as `add`, or a voice of the blend cannot be used.
            StoreError: the folder cannot be written, or another process keeps it locked.
        """
        recipe, found = Blend.parse(blend, "blend"), []
        for part in recipe.names:
            try:
                found.append(self._found(checked_name(part), "voice"))
            except InvalidRequestError as error:
                raise of_part(error, "blend") from None
        widths = {voice.name: voice.enc_dim for voice, _ in found}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{part}: {width}" for part, width in widths.items())
            raise InvalidRequestError("blend", f"its voices are of checkpoints of different sizes ({listed}); blend voices of one size")
        consent = consent or "; ".join(f"{voice.name}: {voice.consent}" for voice, _ in found)
        if len(consent) > MAX_CONSENT_LENGTH:
            problem = f"those of the voices have {len(consent)} characters together; give one of at most {MAX_CONSENT_LENGTH}"
            raise InvalidRequestError("consent", problem)
        self.check_addition(name, consent)
        tensors = pack_tensors(recipe.mix([arrays["ref_spk_embedding"] for _, arrays in found], "blend"))
        voice = StoredVoice(
            name=name.lower(),
            created=_now(),
            consent=consent,
            reference_text=None,
            reference_seconds=0.0,
            reference_sample_rate=0,
            x_vector_only=True,
            made_by=", ".join(dict.fromkeys(voice.made_by for voice, _ in found)),
            enc_dim=found[0][0].enc_dim,
            num_code_groups=0,
            sha256=digest(tensors),
            blend=str(recipe),
            lexicon=checked_lexicon(lexicon),
        )
        self._put(voice, tensors, "blend")
        return voice

    def _put(self, voice: StoredVoice, tensors: bytes, field: str) -> None:
        """Write both files of a voice; `field`: of the request, for the error if they are too large."""
        facts = voice.pack()
        texts, advice = ("lexicon", "fewer words") if voice.lexicon else (field, "a shorter reference")
        for name, kind, content, less in (
            (field, "its tensors take", tensors, "a shorter reference"),
            (texts, "its texts take", facts, advice),
        ):
            if len(content) > self.max_voice_bytes:
                limit = f"at most {self.max_voice_bytes} (voice_store_max_bytes) are allowed; give {less}"
                raise InvalidRequestError(name, f"the voice cannot be stored: {kind} {len(content)} bytes; {limit}")
        with writing(self.folder):
            _remove_orphans(self.folder)
            self.check_addition(voice.name, voice.consent)
            file = self.folder / (voice.name + TENSORS_SUFFIX)
            write_file(file, tensors)
            try:
                write_file(self.folder / (voice.name + FACTS_SUFFIX), facts)
            except OSError:  # a full disk, which they would fill further
                file.unlink()
                raise

    def remove(self, name: str) -> None:
        """Delete a voice, usable or not.

        Raises:
            InvalidRequestError: there is no such voice.
            StoreError: the folder cannot be written, or another process keeps it locked.
        """
        name = checked_name(name, "name")
        with writing(self.folder):
            if name not in self.names():
                raise self._unknown(name, "name")
            for suffix in (FACTS_SUFFIX, TENSORS_SUFFIX):
                try:
                    (self.folder / (name + suffix)).unlink(missing_ok=True)
                except IsADirectoryError:
                    raise InvalidRequestError(
                        "name", f"{name}{suffix} is a folder; only the operator of the server can remove it"
                    ) from None

    # reading

    def _found(self, name: str, field: str) -> tuple[StoredVoice, Arrays]:
        try:
            return self._read(name)
        except FileNotFoundError:
            raise self._unknown(name, field) from None
        except RefusedError as error:
            raise InvalidRequestError(field, f"{name!r} cannot be used: {error}; remove it and add it again") from None

    def _unknown(self, name: str, field: str) -> NotFoundError:
        names = self.names()
        stored = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "none"
        return NotFoundError(field, f"{name!r} is not a stored voice; stored: {stored}{nearest(name, names)}")

    def _read(self, name: str) -> tuple[StoredVoice, Arrays]:
        """Facts and tensors of one voice.

        Raises:
            FileNotFoundError: there is no such voice.
            RefusedError: one of its files cannot be used.
        """
        for _ in range(MAX_ATTEMPTS):
            facts = self._read_file(name + FACTS_SUFFIX)
            voice = StoredVoice.unpack(name, facts)
            try:
                tensors = self._read_file(name + TENSORS_SUFFIX)
            except FileNotFoundError:
                tensors = b""
            if digest(tensors) == voice.sha256:
                return voice, voice.arrays(tensors)
            if self._read_file(name + FACTS_SUFFIX) == facts:  # otherwise it was replaced between the two reads
                break
        missing = "is missing" if not tensors else "is not the one its .json was written with"
        raise RefusedError(f"{name}{TENSORS_SUFFIX} {missing}")

    def _read_file(self, file: str) -> bytes:
        try:
            descriptor = os.open(self.folder / file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            problem = "is a symbolic link" if (self.folder / file).is_symlink() else f"cannot be opened: {error.strerror}"
            raise RefusedError(f"{file} {problem}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RefusedError(f"{file} is not a regular file")
        with open(descriptor, "rb") as opened:
            content = opened.read(self.max_voice_bytes + 1)
        if len(content) > self.max_voice_bytes:
            raise RefusedError(f"{file} is larger than {self.max_voice_bytes} bytes (voice_store_max_bytes)")
        return content

    def _seen(self, name: str) -> object:
        """The state of the files of a voice, which a replacement changes."""
        try:
            return [
                (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                for status in (os.lstat(self.folder / (name + suffix)) for suffix in (FACTS_SUFFIX, TENSORS_SUFFIX))
            ]
        except OSError:
            return object()  # equal to no other state


def _orphans(folder: Path) -> list[Path]:
    """Tensors without a JSON, which a writer that was killed has left, or a removal."""
    files = set(os.listdir(folder))
    names = (file.removesuffix(TENSORS_SUFFIX) for file in files if file.endswith(TENSORS_SUFFIX))
    alone = [folder / (name + TENSORS_SUFFIX) for name in names if NAME_PATTERN.fullmatch(name) and name + FACTS_SUFFIX not in files]
    return [file for file in alone if _has_lain(file) and is_of_a_voice(file)]


def _remove_orphans(folder: Path) -> None:
    """In the body of `writing`: no other process is between the two files of a voice then."""
    for file in _orphans(folder):
        file.unlink(missing_ok=True)


def _has_lain(file: Path) -> bool:
    """Whether `file` is as it is for longer than a copy takes. A copy may have an old date of change, not an old ctime."""
    try:
        return time.time() - os.lstat(file).st_ctime > ORPHAN_SECONDS
    except FileNotFoundError:
        return False


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
