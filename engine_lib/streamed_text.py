"""StreamedText: tokens of a text that comes in pieces, equal to those of the whole text.

A token is given out only if no text that follows can change it. So the text is cut at *safe borders*, and the part behind the last
one is held back until more text comes or the text ends. The tokenizer composes characters (NFC), finds special tokens, splits the
text by a pattern (its own of Qwen2, or CASE_SPLIT) and merges bytes within each part. A border between two characters is safe if none
of these four can reach across it, whatever follows:

1. behind a digit or another number, because the patterns make each a part of its own;
2. behind a letter, if a known character follows that is neither letter nor mark, such as a space, a comma or a digit;
3. before a space or a tab, behind anything but white space;
4. behind a line end, if a letter or a number follows;
5. between two Chinese, Japanese or Korean characters of a word of nothing else, if no token of the vocabulary holds these two side by
   side, and one more such character follows.

No border is safe within a special token, or within a beginning of one that may still be completed. Characters that Unicode 3.2 does not
have, or has in another class than this Python's Unicode, count as unknown, because the tokenizer's Unicode may be older or newer; so do
those that NFC takes apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from engine_lib.errors import LONGER_TEXT, InvalidRequestError
from engine_lib.speech.checks import is_blank

# Ideographs, hiragana, katakana, Hangul syllables, and the marks of repetition and of long vowels. All are letters of neither case,
# none changes by NFC alone, and none but a kana or a syllable composes with a character behind it, which is none of these.
_CJK_RANGES = ((0x3005, 0x3005), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x30FC, 0x30FC), (0x3400, 0x4DB5), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3))
_UNKNOWN = "?"
_OVERLAP = 3  # characters that rules look at


class SafeBorders:
    """Finds safe borders for one tokenizer; see the module's rules."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._neighbours = _neighbours(tokenizer)
        self._special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._special_starts = {token[0] for token in self._special}
        self._longest_special = max(map(len, self._special), default=0)

    def last(self, text: str, start: int = 0) -> int:
        """The last safe border of `text`, which begins at one, behind `start`; 0 if there is none. Number of characters before it.

        Args:
            start: a border up to there was found not to be safe, when the text ended at `start` plus `reach`.
        """
        for border in range(len(text), max(start, 0), -1):
            if self._is_safe(text, border) and not self._may_be_special(text, border):
                return border
        return 0

    @property
    def reach(self) -> int:
        """Characters behind a border that decide whether it is safe, at most."""
        return self._longest_special + _OVERLAP

    def _is_safe(self, text: str, border: int) -> bool:
        before = text[border - 1]
        kind = _kind(before)
        if kind == "N":  # rule 1
            return True
        if border == len(text):
            return False
        after = text[border]
        kind_after = _kind(after)
        if kind == "L" and kind_after in ("N", "P", "S", "Z", "space", "line"):  # rule 2
            return True
        if after in " \t" and unicodedata.category(before)[0] in "LMNPS":  # rule 3
            return True
        if kind == "line":  # rule 4
            return kind_after in ("L", "N")
        return _is_cjk(before) and _is_cjk(after) and self._is_safe_in_word(text, border)  # rule 5

    def _is_safe_in_word(self, text: str, border: int) -> bool:
        if border + 1 == len(text) or not _is_cjk(text[border + 1]):
            return False
        before, after = text[border - 1].encode(), text[border].encode()
        if any((before[i:], after[:j]) in self._neighbours for i in range(len(before)) for j in range(1, len(after) + 1)):
            return False
        while border and _is_cjk(text[border - 1]):
            border -= 1
        return not border or unicodedata.category(text[border - 1])[0] not in "LMC"

    def _may_be_special(self, text: str, border: int) -> bool:
        """Whether a special token, or a beginning of one that may still be completed, lies across `border`."""
        for start in range(max(border - self._longest_special + 1, 0), border):
            if text[start] in self._special_starts:
                for token in self._special:
                    if start + len(token) > border and token.startswith(text[start : start + len(token)]):
                        return True
        return False


class StreamedText:
    """One text that comes in pieces. Its ids, in the order in which they were given out, are those of the whole text."""

    def __init__(self, borders: SafeBorders, encode: Callable[[str], list[int]], *, before: str, after: str) -> None:
        """
        Args:
            borders: of the tokenizer.
            encode: ids of a text.
            before, after: what stands around the text: `before` ends with a line end, `after` begins with a special token.
        """
        self._borders, self._encode = borders, encode
        self._before, self._after, self._num_after = before, after, len(encode(after))
        # Gets each part of the text just before its ids, and whether it is the last.
        self.on_text: Callable[[str, bool], None] | None = None
        self._held = ""
        self._num_searched = 0  # characters of `_held`: no border before that is safe, whatever follows

    def append(self, piece: str) -> list[int]:
        """Add `piece` to the text; returns the ids that are certain now and were not given out yet, those of `before` first."""
        self._held += piece
        border = self._borders.last(self._held, self._num_searched)
        if not border:
            self._num_searched = len(self._held) - self._borders.reach
            return []
        before = self._before
        text, self._held, self._num_searched = before + self._held[:border], self._held[border:], 0
        self._before = ""
        if self.on_text is not None:
            self.on_text(text.removeprefix(before), False)
        return self._encode(text)

    def end(self) -> list[int]:
        """Returns the ids that are left; those of `after` are none of them."""
        if self.on_text is not None:
            self.on_text(self._held, True)
        return self._encode(self._before + self._held + self._after)[: -self._num_after]


class TextRows:
    """The text of a prompt's rows and of those behind it, row by row, while it comes in pieces. It belongs to one thread at a time.

    Attributes:
        num_rows: rows that have their text.
        num_text_tokens: tokens of the text to be spoken, so far.
        max_text_tokens: the most that it may have; None: as many as there are rows.
    """

    def __init__(self, text: StreamedText, head: Sequence[int], role: slice, *, end: int, max_length: int) -> None:
        """
        Args:
            text: the text, with the role before it.
            head: text ids of the rows before the text.
            role: the rows in it that the role takes.
            end: the id behind the text.
            max_length: longest text, in characters.
        """
        self.num_rows = self.num_text_tokens = 0
        self._text, self._head, self._role, self._end = text, list(head), role, end
        self._room = self._max_length = max_length
        self._is_blank = True
        self.max_text_tokens: int | None = None

    def follow(self, on_text: Callable[[str, bool], None], max_text_tokens: int) -> None:
        """Let `on_text` get each part of the text just before its ids are given out, and whether it is the last part."""
        self._text.on_text, self.max_text_tokens = on_text, max_text_tokens

    def append(self, piece: str, *, is_last: bool = False) -> list[int]:
        """Add a piece of the text, which may be empty; returns the text of further rows, as far as nothing that follows can change it.

        Raises:
            InvalidRequestError: the piece is not allowed, and was not added; or it is the last, and all of them are blank.
        """
        check_text("text", piece, self._max_length, self._room)
        self._room -= len(piece)
        self._is_blank = self._is_blank and is_blank(piece)
        if is_last and self._is_blank:
            raise empty("text")
        ids = self._text.append(piece)
        if is_last:
            ids += self._text.end()
        if ids and not self.num_rows:
            length = self._role.stop - self._role.start
            self._head[self._role], ids = ids[:length], ids[length:]
            self.num_rows = len(self._head)
            head = self._head
        else:
            head = []
        self.num_text_tokens += len(ids)
        ids += [self._end] * is_last
        self.num_rows += len(ids)
        return [*head, *ids]


def check_text(field: str, text: object, max_length: int, room: int | None = None) -> None:
    """Check a text, or a piece of one that has room for `room` more characters; it may be empty.

    Raises:
        InvalidRequestError: it is no string, too long or no Unicode text.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(field, f"is a {type(text).__name__}; give a string")
    length = len(text) if room is None else max_length - room + len(text)
    if length > max_length:
        advice = LONGER_TEXT if field == "text" else ""
        raise InvalidRequestError(field, f"has {length} characters; at most {max_length} are allowed{advice}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(field, "holds a lone surrogate; give valid Unicode text") from None


def empty(field: str) -> InvalidRequestError:
    """The error of a blank text."""
    return InvalidRequestError(field, "is empty; give at least one word")


def _kind(character: str) -> str:
    """The class of a character: L, M, N, P, S, Z or C as in Unicode, space or line for those of ASCII, or unknown."""
    if character in " \t":
        return "space"
    if character in "\r\n":
        return "line"
    kind, composed = unicodedata.category(character)[0], unicodedata.normalize("NFC", character)
    is_known = kind == unicodedata.ucd_3_2_0.category(character)[0] and len(composed) == 1
    return kind if is_known else _UNKNOWN


def _is_cjk(character: str) -> bool:
    return character > "\u3000" and any(first <= ord(character) <= last for first, last in _CJK_RANGES)


def _neighbours(tokenizer: Tokenizer) -> set[tuple[bytes, bytes]]:
    """What stands on each side of a border before a CJK character within a token: a whole character, or what the token has of it."""
    pairs = set()
    for token in filter(_HOLDS_BORDER.search, tokenizer.get_vocab(with_added_tokens=False)):
        content = bytes(_BYTES.get(character, 0) for character in token)
        starts = [0, *(i for i, byte in enumerate(content) if byte & 0xC0 != 0x80 and i), len(content)]
        pairs |= {(content[before:start], content[start:stop]) for before, start, stop in zip(starts, starts[1:], starts[2:], strict=False)}
    return pairs


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level BPE names bytes: printable Latin-1 names itself, the others follow from U+0100 on."""
    named = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in named]
    return {chr(byte): byte for byte in named} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()
# Somewhere behind its beginning such a token has the first byte of a three-byte character, as those of _CJK_RANGES are.
_HOLDS_BORDER = re.compile(f".[{''.join(character for character, byte in _BYTES.items() if 0xE3 <= byte <= 0xED)}]", re.DOTALL)
