"""A text that comes in pieces gets the tokens of the whole text, wherever it is cut, and soon."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from test_tokenizer import ALPHABETS, TEXTS, random_text
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from engine_lib.checkpoint import Checkpoint
from engine_lib.prompt import PromptBuilder
from engine_lib.streamed_text import _CJK_RANGES, SafeBorders, StreamedText, _kind
from engine_lib.text_tokenizer import CASE_SPLIT

BEFORE, AFTER = "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n"
NUM_TEXTS = 200
OWN_TEXTS = [
    "I can't say; we'll see, they'd've gone. 'S and 'r, rock 'n' roll, O'Neill's",
    "In 2026, 3.5 % of 1/2 cost $12,345.67 (or €11k), at 10:30.",
    "  two  spaces \t tabs\t\t \n \n\n lines \r\n\r\n and//\n/paths/\n!\n!\r\n",
    "今天天气很好，我们去公园吧。１２３号ABC中文Dear朋友abc你好世界 English和中文mixed在一起",
    "コーヒーを飲みました。か\u3099き\u309aゞ々、ｶﾞ한국어 텍스트\u11a8 각\u1100\u1161",
    "e\u0301a\u0323\u0307 \u0958, q\u0323\u0307. Å\u030a=\u0338 <\u0338 1\ufe0f\u20e3",
    "😀 👩‍👩‍👧! 🏽 ❤️? end😀",
    "<|im_end|><|im_end <|im_end|", "a<|im_start|> b <|im_st art|> <tool_call>x</tool_call>", "<<|im_end|>>", "9", "1 2  3\n4", "x",
]  # fmt: skip


def dense_tokenizer(seed: int) -> Tokenizer:
    """A tokenizer with tokens across all kinds of borders: trained on random text, mostly of few Chinese and Japanese characters."""
    rng = random.Random(seed)
    cjk = ["你好世界今天气们和abcABC ", "いうえおカキーク々한국어。", "你好世界"]
    lines = ["".join(rng.choices(rng.choice([*cjk, *cjk, *ALPHABETS]), k=60)) for _ in range(2000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(CASE_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1500, show_progress=False, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|im_start|>", "<|im_end|>")])
    return tokenizer


@pytest.fixture(params=["tiny_custom_voice", "tiny_published_ids", "dense"])
def tokenizer(request: pytest.FixtureRequest, fresh_seed: int) -> Tokenizer:
    """Return a tokenizer of each split pattern, and one with many tokens of several characters."""
    if request.param == "dense":
        return dense_tokenizer(fresh_seed)
    return Checkpoint(request.getfixturevalue(request.param)).tokenizer


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def streamed(tokenizer: Tokenizer, borders: SafeBorders, pieces: Iterable[str]) -> list[int]:
    """The ids of the pieces, `BEFORE` included."""
    text = StreamedText(borders, lambda part: ids_of(tokenizer, part), before=BEFORE, after=AFTER)
    ids = [i for piece in pieces for i in text.append(piece)]
    return ids + text.end()


def test_every_split_of_200_texts_gives_the_tokens_of_the_whole_text(tokenizer: Tokenizer, fresh_seed: int) -> None:
    rng, borders = random.Random(fresh_seed), SafeBorders(tokenizer)
    texts = OWN_TEXTS + [text for text in TEXTS if text.strip() and len(text) < 200]
    texts += [random_text(rng) for _ in range(NUM_TEXTS - len(texts))]
    texts[-60:] = ["".join(rng.choices("你好世界今天いうカキーク한국aB， ", k=40)) for _ in range(60)]
    for text in texts:
        whole = ids_of(tokenizer, BEFORE + text + AFTER)[: -len(ids_of(tokenizer, AFTER))]
        splits = [[cut] for cut in range(len(text) + 1)]
        splits.append([*range(1, len(text))])
        splits += [sorted(rng.choices(range(len(text) + 1), k=rng.randint(2, 12))) for _ in range(4)]
        for cuts in splits:
            pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            assert streamed(tokenizer, borders, pieces) == whole, (text, pieces)


def test_a_word_is_given_out_when_what_follows_has_begun(tiny_published_ids: Path) -> None:
    tokenizer = Checkpoint(tiny_published_ids).tokenizer
    text = StreamedText(SafeBorders(tokenizer), lambda part: ids_of(tokenizer, part), before=BEFORE, after=AFTER)

    def given_out(piece: str) -> str:
        spoken: str = tokenizer.decode(text.append(piece), skip_special_tokens=False)
        return spoken.removeprefix(BEFORE)

    assert [given_out(piece) for piece in ("Good", " morning", ",", " every", "one! ", "It is 7", ":30", "\n", "Yes")] == [
        "", "Good", " morning", ",", " everyone!", " It is 7", ":30", "", "\n",
    ]  # fmt: skip
    assert tokenizer.decode(text.end()) == "Yes"


def test_the_parts_of_a_text_have_the_token_spans_of_the_whole(tiny_published_ids: Path) -> None:
    builder = PromptBuilder(Checkpoint(tiny_published_ids), 1000)
    for text in ("Good morning.\n\nIt is 7:30 \U0001f600, 你好世界你好!", "\n\n Yes  <|im_end|> no"):
        parts: list[tuple[str, bool]] = []
        _, rows = builder.open(voice="ryan")
        rows.follow(partial(_keep, parts), 100)
        for character in text:
            rows.append(character)
        rows.append("", is_last=True)
        spans, begin = list[tuple[int, int]](), 0
        for part, _ in parts:
            spans += [(begin + start, begin + end) for start, end in builder.token_spans(part, not begin)]
            begin += len(part)
        assert spans == builder.token_spans(text)
        assert len(spans) == rows.num_text_tokens
        assert [is_last for _, is_last in parts] == [False] * (len(parts) - 1) + [True]


def _keep(parts: list[tuple[str, bool]], part: str, is_last: bool) -> None:
    parts.append((part, is_last))


def test_chinese_needs_no_space(tiny_published_ids: Path) -> None:
    tokenizer = Checkpoint(tiny_published_ids).tokenizer
    text = StreamedText(SafeBorders(tokenizer), lambda part: ids_of(tokenizer, part), before=BEFORE, after=AFTER)
    held = [len(text._held) for character in "我喜欢喝咖啡和绿茶" if text.append(character) is not None]
    assert max(held) <= 3


def test_a_border_within_a_special_token_is_not_safe_until_it_can_be_none(tiny_published_ids: Path) -> None:
    borders = SafeBorders(Checkpoint(tiny_published_ids).tokenizer)
    assert borders.last("word <|im_end") == len("word")
    assert borders.last("word <|im_end ") == len("word <|im_end")
    assert borders.last("word <|im_end|> ") == len("word <|im_end|>")


def test_a_text_of_one_endless_word_takes_no_longer_for_each_piece(tiny_published_ids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    borders = SafeBorders(Checkpoint(tiny_published_ids).tokenizer)
    is_safe, looked_at = borders._is_safe, list[int]()

    def watched(text: str, border: int) -> bool:
        looked_at.append(border)
        return is_safe(text, border)

    monkeypatch.setattr(borders, "_is_safe", watched)
    text = StreamedText(borders, lambda part: [], before=BEFORE, after="")
    for _ in range(1000):
        text.append("a")
    assert len(looked_at) <= 1000 * (borders.reach + 1)


def test_nothing_that_the_rules_take_for_known_composes_with_what_stands_before_it() -> None:
    """The rules cut before these characters, so NFC must not join them with the text before; nor may it change their class."""
    joining = {0x11A8 + i - 1 for i in range(28)} | {0x1161 + i for i in range(21)}  # Jamo vowels and final consonants
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joining.add(int(parts[1], 16))
    for code in range(0x110000):
        character, kind = chr(code), _kind(chr(code))
        if kind in ("N", "P", "S", "Z"):
            assert code not in joining
            assert unicodedata.combining(character) == 0
            assert _kind(unicodedata.normalize("NFC", character)[0]) == kind
        if kind == "N":
            assert unicodedata.normalize("NFC", character) == character
        if kind == "L":
            assert unicodedata.category(unicodedata.normalize("NFC", character))[0] == "L"
    for first, last in _CJK_RANGES:
        for code in range(first, last + 1):
            character = chr(code)
            assert unicodedata.category(character) in ("Lo", "Lm")
            assert unicodedata.normalize("NFC", character) == character
            assert code not in joining
