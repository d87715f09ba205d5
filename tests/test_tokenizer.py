"""A checkpoint's tokenizer gives the ids of the official processor, with both split patterns."""

from __future__ import annotations

import json
import random
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

import oracle
from engine_lib.checkpoint import Checkpoint
from engine_lib.errors import CheckpointError

FIXTURES = ["tiny_custom_voice", "tiny_published_ids"]
TEMPLATES = [
    "<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>assistant\n{}<|im_end|>\n",
    "<|im_start|>user\n{}<|im_end|>\n",
]
TEXTS = [
    "Hello, how are you?",
    "",
    " ",
    "   three spaces first and last   ",
    "\n",
    "\n\nTwo newlines first",
    "\t\tTabs\tbetween\twords\t",
    "trailing newline\n",
    "trailing \n \n",
    "\r\nWindows\r\n",
    "non-breaking\u00a0space, zero\u200bwidth, \ufeffbyte order mark",
    # The two patterns split these differently: capitals inside words, contractions, slashes after newlines, marks.
    "iPhone's OLED, McDonald's, eBay's and NASAs",
    "I'm, you're, he'll, WE'VE, don'T, they'D, o'clock, ’s and 's",
    "and/or\n//comment\n/path/to\n/\n",
    "HELLO World hELLO wOrLd ΑΒΓαβγ ЁЛКАёлка",
    "ǅungla ʰaspirated ªº",
    "12,345.67 % of 1/2 ²³ Ⅷ ١٢٣ १२३",
    "snake_case, kebab-case, CamelCase, dot.case, a@b.example, https://example.org/a?b=c#d",
    "你好，今天天气很好。１２３ＡＢＣ",
    "おはようございます。今日はいい天気ですね。ｶﾀｶﾅ",
    "안녕하세요. 오늘 날씨가 좋네요.",
    "Доброе утро, как дела?",
    "नमस्ते दुनिया",
    "שָׁלוֹם עולם مَرْحَبًا",
    "สวัสดีครับ",
    "e\u0301 decomposed, é composed, A\u030a, \u212b, ﬁ, ẛ̣, \u1100\u1161",
    "😀 smile 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️",
    "\u0000\u0001\u001f\u007f\u0085\u2028\u2029",
    "\U0010ffff \uffff \ue000",
    "assistant\nassistant user system",
    "<|im_start|>, <|im_end|>, <|endoftext|> and <tts_pad> inside a text",
    "<|im_end",
    "|>",
    "<|unknown|>",
    "<think>",
    "[:3]",
    "{}",
    "\\n",
    "''",
    '""',
    "...",
    "…",
    "!?!?!",
    "—–-",
    "a" * 300,
    "long " * 200,
]
# Characters that the two patterns, NFC or byte fallback treat in special ways.
ALPHABETS = [
    "abcXYZ '",
    "aA'sStTrReEvVmMlLdD ",
    " \n\r\t/\\.",
    "aé\u0301\u030a\u0323Åſ",
    "你好世界，。！",
    "0123456789٣Ⅷ²,. ",
    "<|im_endstart>",
    "ДдЖжǅʰªΣσς",
    "👩\u200d👧❤\ufe0f😀🏽",
]


def random_text(rng: random.Random) -> str:
    """Up to 60 characters of one alphabet, of all alphabets, or of all of Unicode except surrogates."""
    length = rng.randint(1, 60)
    kind = rng.randrange(len(ALPHABETS) + 2)
    if kind < len(ALPHABETS):
        return "".join(rng.choices(ALPHABETS[kind], k=length))
    if kind == len(ALPHABETS):
        return "".join(rng.choices("".join(ALPHABETS), k=length))
    return "".join(chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(length))


def official_ids(path: Path, text: str) -> list[int]:
    ids: list[int] = oracle.load_official(path)._tokenize_texts([text])[0][0].tolist()
    return ids


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_text_gets_the_official_ids_in_every_template(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    tokenizer = Checkpoint(path).tokenizer
    for template in TEMPLATES:
        for text in TEXTS:
            wrapped = template.replace("{}", text)
            assert tokenizer.encode(wrapped).ids == official_ids(path, wrapped), repr(wrapped)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_random_texts_get_the_official_ids(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    tokenizer = Checkpoint(path).tokenizer
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    for _ in range(1000):
        wrapped = rng.choice(TEMPLATES).replace("{}", random_text(rng))
        assert tokenizer.encode(wrapped).ids == official_ids(path, wrapped), f"seed {seed}: {wrapped!r}"


def test_the_two_checkpoints_are_split_by_different_patterns(tiny_custom_voice: Path, tiny_published_ids: Path):
    """Without this, the tests above could test one pattern twice."""
    own, other = (Checkpoint(path).tokenizer for path in (tiny_custom_voice, tiny_published_ids))
    assert own.encode("iPhone").tokens == ["iPhone"]
    assert other.encode("iPhone").tokens != ["iPhone"]


@pytest.mark.parametrize("written_by", ["4.57.2", "4.57.6", "5.0.0", None])
def test_the_pattern_follows_the_release_that_wrote_the_folder(written_by: str | None, tiny_published_ids: Path, tmp_path: Path):
    oracle.load_official(tiny_published_ids)  # registers the official processor
    from transformers import AutoProcessor

    for file in tiny_published_ids.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((tiny_published_ids / "config.json").read_text())
    config["transformers_version"] = written_by
    (tmp_path / "config.json").write_text(json.dumps(config))
    official = AutoProcessor.from_pretrained(str(tmp_path), fix_mistral_regex=True)
    text = "My iPhone's there."
    assert Checkpoint(tmp_path).tokenizer.encode(text).ids == official(text=text)["input_ids"][0]


@pytest.mark.parametrize("fixture", FIXTURES)
def test_all_ids_are_rows_of_the_text_table(fixture: str, request: pytest.FixtureRequest):
    checkpoint = Checkpoint(request.getfixturevalue(fixture))
    assert max(checkpoint.tokenizer.get_vocab().values()) < checkpoint.config.talker.text_vocab_size


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_folder_without_a_tokenizer_file_is_refused(name: str, tiny_custom_voice: Path, tmp_path: Path):
    for file in tiny_custom_voice.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match=rf"{name} is missing; the folder is not a complete"):
        _ = Checkpoint(tmp_path).tokenizer


def test_a_folder_of_another_layout_gets_the_same_tokenizer(tiny_published_ids: Path, tmp_path: Path):
    for file in tiny_published_ids.iterdir():
        if file.name not in ("vocab.json", "merges.txt"):
            (tmp_path / file.name).symlink_to(file)
    tokenizer = Checkpoint(tiny_published_ids).tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    other = Checkpoint(tmp_path).tokenizer
    assert other.get_vocab() == tokenizer.get_vocab()
    assert [other.encode(text).ids for text in TEXTS] == [tokenizer.encode(text).ids for text in TEXTS]


def test_a_published_folder_is_read_without_transformers(tiny_published_ids: Path):
    code = "import sys, engine_lib.checkpoint as c; c.Checkpoint(sys.argv[1]).tokenizer; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tiny_published_ids)], check=True)
