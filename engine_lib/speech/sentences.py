"""Where sentences and paragraphs of a text begin: offsets alone, so no character can be lost.

sentencex finds the ends of sentences, by the rules and abbreviations of each language. It takes the end of a line for that of a
sentence, and needs time that is quadratic in the length of a text of nothing but opening quotes. So line ends within a paragraph
are shown to it as spaces, and a long paragraph in blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sentencex import segment

BLOCK = 2000  # characters that sentencex gets at a time
LINE_ENDS = str.maketrans("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " " * 10)
_PARAGRAPH = re.compile(r"(?:\r\n|[\n\r\v\x85\u2028])[^\S\n\r]*(?:\r\n|[\n\r\v\x85\u2028])\s*|[\f\u2029]\s*")
_WORD = re.compile(r"\S")
# Abbreviations that sentencex takes for the end of a sentence: one letter, as in "M. Dupont" and "z. B.".
_INITIAL = re.compile(r"(?:^|[\s.(])[^\W\d_]\.\s*$")
# Japanese that goes on behind a quotation: 「本当？」と言った。
_QUOTATION = re.compile("[」』）][とっをはがのにもなで]")


def paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each paragraph of `text`: blank lines, page breaks and paragraph separators lie between them."""
    begin = 0
    for gap in _PARAGRAPH.finditer(text):
        if text[begin : gap.start()].strip():
            yield begin, gap.start()
        begin = gap.end()
    if text[begin:].strip():
        yield begin, len(text)


def sentences(text: str, language: str) -> list[tuple[int, int]]:
    """Begin and end of each sentence of a paragraph. They follow one another without a gap and cover it.

    Args:
        language: ISO 639 code, such as "en". sentencex knows some 240, and takes the rules of English or of a related one for others.
    """
    shown = text.translate(LINE_ENDS)
    borders, position = [0], 0
    while position < len(shown):
        block = shown[position : position + BLOCK]
        parts = [len(sentence) for sentence in segment(language, block)]
        if len(parts) > 1 and position + len(block) < len(shown):
            parts.pop()  # because its sentence may go on behind the block
        for part in parts if sum(parts) <= len(block) else [len(block)]:
            position += part
            if len(parts) > 1 and 0 < position < len(shown) and _is_end(shown, borders[-1], position):
                borders.append(position)
    return list(zip(borders, [*borders[1:], len(text)], strict=True))


def _is_end(shown: str, begin: int, end: int) -> bool:
    """Whether characters `begin` to `end` are a sentence, and not a part of one or blank."""
    tail = shown[max(begin, end - 12) : end]
    return bool(_WORD.search(shown, begin, end)) and not _INITIAL.search(tail) and not _QUOTATION.match(shown, end - 1)
