"""A byte-level BPE tokenizer for our checkpoints, in the files that Qwen2TokenizerFast reads.

It is trained on the text below or on given text, so it needs no download. Other code relies on two properties: "assistant", "user"
and a newline are one token each, because the prompt code cuts the role and the tail by token count. And no token joins a newline
with other characters, so a text that starts with newlines cannot change those counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from random_checkpoint.vocabulary import SPECIAL_TOKENS

BPE_VOCAB = 640  # 256 bytes and 384 merges

_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TRAINING_TEXT = """
The server reads a line of text and speaks it. Every frame is eighty milliseconds of sound, and every sound is made of sixteen numbers.
Good morning! How are you today? I am fine, thank you. It's raining, so we'll stay at home and read the other book about the sea.
A client that listens wants the first words at once and the rest in time; a client that leaves wants nothing more, and the server notices.
When the weather is good, the children of the town walk to the river, and they sing the songs that their mothers and fathers taught them.
Please call the station and ask whether the train to the north is late. There is another train at seven, and there are seats for three.
Guten Morgen, wie geht es Ihnen heute? Das Wetter ist schön, und die Kinder spielen im Garten. Der Zug nach Berlin ist nicht verspätet.
Bonjour, comment allez-vous aujourd'hui? Les enfants sont dans le jardin et le train est en retard. Où est la gare, s'il vous plaît?
Buenos días, ¿cómo está usted? El tren de las siete llega tarde, pero los niños están en la casa. Muchas gracias por todo.
Bom dia, como está o senhor? O comboio não está atrasado. Buongiorno, come sta? Il treno della mattina è in ritardo. Grazie a tutti.
Доброе утро, как дела? Поезд на север опаздывает, а дети играют в саду. Большое спасибо, до свидания.
你好，今天天气很好，我们去公园吧。我们的朋友在哪里？谢谢你，明天见。今天的火车晚点了，我们明天再去。
おはようございます。今日はいい天気ですね。電車は遅れています。ありがとうございます。
안녕하세요. 오늘 날씨가 좋네요. 기차가 늦었습니다. 감사합니다.
Speak slowly and with a warm, low voice. Speak quickly, like a happy young woman who tells good news. Whisper, as if all were asleep.
"""


def write_tokenizer(folder: Path, first_special: int, texts: Sequence[str] = (), vocab_size: int = BPE_VOCAB) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json.

    Args:
        folder: folder to write into.
        first_special: the id of <|endoftext|>.
        texts: texts to train on instead of the text in this file.
        vocab_size: ordinary tokens, the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    # Repeated, so that each becomes one token without a leading space. "iPhone" distinguishes the two patterns with which
    # transformers may split (fix_mistral_regex): only Qwen2's own does not split before a capital inside a word.
    lines = list(texts) or _TRAINING_TEXT.splitlines()
    tokenizer.train_from_iterator(["assistant", "user", "iPhone"] * max(50, len(lines)) + lines, trainer)

    vocab: dict[str, int] = tokenizer.get_vocab()
    if len(vocab) != vocab_size:
        raise RuntimeError(f"the training text gave {len(vocab)} tokens, {vocab_size} are wanted")
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    # A fast tokenizer numbers added tokens consecutively, so published ids need a vocabulary without gaps below them.
    vocab |= {f"<|unused_{i}|>": i for i in range(vocab_size, first_special)}

    ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(ordered, ensure_ascii=False), encoding="utf-8")
    merge_lines = ["#version: 0.2"] + [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(merge_lines) + "\n", encoding="utf-8")
    added = {
        str(first_special + i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
        }
        for i, token in enumerate(SPECIAL_TOKENS)
    }
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [row["content"] for row in added.values() if row["special"] and row["content"] != "<|endoftext|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
