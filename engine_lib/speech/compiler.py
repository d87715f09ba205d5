"""TextCompiler: from the text of a request to what is spoken: as it is, or a Script.

plain, SSML or dialogue -> passages (reading.py) -> words as they are said (lexicon.py, normalization.py) -> lines. A plain text without
text fields is not touched, and is not even looked at unless the server or the voice has a lexicon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import regex

from engine_lib.errors import LONGER_TEXT, InvalidRequestError
from engine_lib.speech.checks import is_blank, is_unicode
from engine_lib.speech.dialogue import read_dialogue
from engine_lib.speech.languages import code_of
from engine_lib.speech.lexicon import NO_LEXICON, Lexicon, edits_of
from engine_lib.speech.pieces import MIN_PIECE_LENGTH, PIECE_LENGTH, Border, cut
from engine_lib.speech.reading import Passage, added, cut_at_pauses
from engine_lib.speech.script import Line, Script
from engine_lib.speech.sentences import LINE_ENDS, paragraphs, sentences
from engine_lib.speech.ssml import read_ssml
from engine_lib.speech.text_options import DEFAULT_TEXT, TextFormat, TextOptions
from engine_lib.speech.written import Written

SENTENCE_PAUSE_MS, PARAGRAPH_PAUSE_MS = 200, 600  # beside the silence that the model itself puts at the ends of its speech
MAX_LINES, MAX_SILENCE_MS = 10_000, 3_600_000  # of one script
_SPOKEN = regex.compile(r"[\p{L}\p{N}\p{Sc}]")  # not a line of stars between two scenes


class TextSettings(Protocol):
    """The options of an engine that TextCompiler needs; EngineConfig has them."""

    @property
    def max_text_length(self) -> int: ...
    @property
    def max_script_length(self) -> int: ...
    @property
    def piece_length(self) -> int: ...
    @property
    def lexicon_file(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TextCompiler:
    """Compiles the texts of one server.

    Attributes:
        max_text_length: of one line, in characters.
        max_script_length: of a whole text that is spoken as a script, in characters.
        piece_length: characters in a piece of a long text; see pieces.py.
        lexicon: of the server.
    """

    max_text_length: int
    max_script_length: int = 100_000
    piece_length: int = PIECE_LENGTH
    lexicon: Lexicon = field(default_factory=Lexicon)

    @classmethod
    def of(cls, settings: TextSettings, learnt_length: int | None) -> TextCompiler:
        """The compiler of an engine with these options.

        Args:
            learnt_length: characters in the longest texts that its checkpoint has learnt; None: unknown.

        Raises:
            ConfigError: lexicon_file cannot be used.
        """
        return cls(
            max_text_length=settings.max_text_length,
            max_script_length=settings.max_script_length,
            piece_length=max(MIN_PIECE_LENGTH, settings.piece_length or learnt_length or PIECE_LENGTH),
            lexicon=Lexicon.read(settings.lexicon_file),
        )

    def longest(self, options: TextOptions) -> int:
        """The most characters a text may have."""
        return max(self.max_script_length, self.max_text_length) if _is_script(options) else self.max_text_length

    def advice(self, options: TextOptions) -> str:
        """The end of the message about a longer one."""
        return "" if _is_script(options) else LONGER_TEXT

    def compile(
        self,
        text: str,
        options: TextOptions = DEFAULT_TEXT,
        language: str | None = None,
        lexicon_of: Callable[[str | None], Lexicon] = lambda _voice: NO_LEXICON,
    ) -> str | Script:
        """What is spoken.

        Args:
            language: of the request.
            lexicon_of: the lexicon of the voice of a line; of None, that of the request. For a voice that does not exist it is empty.

        Returns:
            `text` itself if it is spoken as it is; it is not checked then. Otherwise a script, also of one line.

        Raises:
            InvalidRequestError: the text cannot be read in its format, holds nothing to speak, or is too long.
        """
        if options == DEFAULT_TEXT and not self.lexicon and not lexicon_of(None):
            return text
        _check(text, self.longest(options), self.advice(options))
        passages = [self._worded(passage, options, language, lexicon_of) for passage in self._read(text, options, language)]
        if options.text_format is TextFormat.PLAIN and not options.long_form:
            [passage] = passages
            return text if passage.written.text == text else Script((self._line(passage.written, passage, 0),))
        return self._script(passages, options, language)

    def _read(self, text: str, options: TextOptions, language: str | None) -> Iterator[Passage]:
        """The passages of `text` in its format."""
        if options.text_format is TextFormat.SSML:
            passages = read_ssml(text, language)
        elif options.text_format is TextFormat.DIALOGUE:
            passages = read_dialogue(text, self.max_text_length)
        elif options.long_form:
            passages = [Passage(Written.whole(text))]
        else:
            return iter([Passage(Written.whole(text))])  # short forms of pauses are words of a plain text
        return (part for passage in passages for part in cut_at_pauses(passage))

    def _worded(self, passage: Passage, options: TextOptions, language: str | None, lexicon_of: Callable[[str | None], Lexicon]) -> Passage:
        """`passage` with its words as they are said."""
        lexicons = (options.lexicon, lexicon_of(passage.style.voice), self.lexicon)
        written = passage.written.edited(edits_of(lexicons, passage.written.text))
        if options.normalize_text:
            from engine_lib.speech.normalization import normalized  # ICU's data are large, and few requests need them

            written = written.edited(normalized(written.text, passage.style.language or language))
        return replace(passage, written=written.spoken())

    def _script(self, passages: list[Passage], options: TextOptions, language: str | None) -> Script:
        pauses = {
            Border.NONE: 0,
            Border.SENTENCE: SENTENCE_PAUSE_MS if options.sentence_pause_ms is None else options.sentence_pause_ms,
            Border.PARAGRAPH: PARAGRAPH_PAUSE_MS if options.paragraph_pause_ms is None else options.paragraph_pause_ms,
        }
        lines: list[Line] = []
        pause_ms: int | None = None
        border = Border.NONE
        for passage in passages:
            pause_ms = added(pause_ms, passage.pause_ms)
            parts = self._pieces(passage, options, language) if options.long_form else _whole(passage)
            for written, border_before in parts:
                border = max(border, border_before)
                if _SPOKEN.search(written.text):
                    default = pauses[border] if lines else 0
                    lines.append(self._line(written, passage, default if pause_ms is None else pause_ms))
                    pause_ms, border = None, Border.NONE
                if len(lines) > MAX_LINES:
                    problem = f"has more than {MAX_LINES} lines, at its pauses, borders and elements"
                    raise InvalidRequestError("text", f"{problem}; send it in several requests")
        if not lines:
            raise InvalidRequestError("text", "is empty; give at least one word")
        silence = sum(line.pause_ms for line in lines) + (pause_ms or 0)
        if silence > MAX_SILENCE_MS:
            raise InvalidRequestError("text", f"has {silence / 1000:.0f}s of pauses; at most {MAX_SILENCE_MS // 1000}s are allowed")
        return Script(tuple(lines), pause_ms or 0)

    def _pieces(self, passage: Passage, options: TextOptions, language: str | None) -> Iterator[tuple[Written, Border]]:
        """The pieces of a long text."""
        written, border = passage.written, passage.border
        if not written.text.strip():
            yield written, border
            return
        code = code_of(passage.style.language or language, written.text)
        for begin, end in paragraphs(written.text):
            paragraph = written.cut(begin, end)
            found = sentences(paragraph.text, code)
            shown = replace(paragraph, text=paragraph.text.translate(LINE_ENDS))
            most = min(self.piece_length, self.max_text_length)
            for piece in cut(shown.text, found, most, gather=options.sentence_pause_ms is None):
                yield shown.cut(piece.start, piece.end), border if piece.border is Border.PARAGRAPH else piece.border
            border = Border.PARAGRAPH

    def _line(self, written: Written, passage: Passage, pause_ms: int) -> Line:
        text, style = written.text.strip(), passage.style
        if len(text) > self.max_text_length:
            problem = f"has a part of {len(text)} characters that is spoken at once; at most {self.max_text_length} are allowed"
            raise InvalidRequestError("text", f"{problem}{LONGER_TEXT}")
        return Line(
            text=text,
            voice=style.voice,
            language=style.language,
            instruct=style.instruct,
            pause_ms=pause_ms,
            speed=style.speed,
            volume_db=style.volume_db,
            begin=written.begins[len(written.text) - len(written.text.lstrip())],
        )


def _whole(passage: Passage) -> Iterator[tuple[Written, Border]]:
    yield passage.written, passage.border


def _is_script(options: TextOptions) -> bool:
    return options.long_form or options.text_format is not TextFormat.PLAIN


def _check(text: object, longest: int, advice: str) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError("text", f"is a {type(text).__name__}; give a string")
    if len(text) > longest:
        raise InvalidRequestError("text", f"has {len(text)} characters; at most {longest} are allowed{advice}")
    if not is_unicode(text):
        raise InvalidRequestError("text", "holds a lone surrogate; give valid Unicode text")
    if is_blank(text):
        raise InvalidRequestError("text", "is empty; give at least one word")
