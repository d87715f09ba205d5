"""Words that CLDR does not have: signs of addresses, the shape of dates and of times of the day."""

from __future__ import annotations

LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "ko", "pt", "ru", "zh")
_NAMES = ("@", ".", "/", "-", "_", ":", "+", "#", "&", "=", "?", "%")
_SIGNS = {
    "de": "at, Punkt, Schrägstrich, Bindestrich, Unterstrich, Doppelpunkt, plus, Raute, und, gleich, Fragezeichen, Prozent",
    "en": "at, dot, slash, dash, underscore, colon, plus, hash, and, equals, question mark, percent",
    "es": "arroba, punto, barra, guion, guion bajo, dos puntos, más, almohadilla, y, igual, interrogación, por ciento",
    "fr": "arobase, point, barre oblique, tiret, tiret bas, deux-points, plus, dièse, et, égale, point d'interrogation, pour cent",
    "it": "chiocciola, punto, barra, trattino, trattino basso, due punti, più, cancelletto, e, uguale, punto interrogativo, per cento",
    "ja": "アットマーク, ドット, スラッシュ, ハイフン, アンダーバー, コロン, プラス, シャープ, アンド, イコール, はてな, パーセント",
    "ko": "골뱅이, 점, 슬래시, 하이픈, 밑줄, 콜론, 플러스, 샵, 앤드, 이퀄, 물음표, 퍼센트",
    "pt": "arroba, ponto, barra, hífen, sublinhado, dois pontos, mais, cerquilha, e, igual, ponto de interrogação, por cento",
    "ru": "собака, точка, слэш, дефис, подчёркивание, двоеточие, плюс, решётка, и, равно, вопросительный знак, процент",
    "zh": "艾特, 点, 斜杠, 杠, 下划线, 冒号, 加, 井号, 和, 等于, 问号, 百分之",
}
SIGNS = {code: dict(zip(_NAMES, words.split(", "), strict=True)) for code, words in _SIGNS.items()}

MINUS = {"de": "minus ", "en": "minus ", "es": "menos ", "fr": "moins ", "it": "meno ", "ja": "マイナス", "ko": "마이너스 "}
MINUS |= {"pt": "menos ", "ru": "минус ", "zh": "负"}
CENTS_AND = {"es": "con ", "it": "e ", "pt": "e "}  # between whole money and its cents
# As ICU's messages, because Russian's depends on the number; behind the number, in Chinese before it.
PERCENT = {
    "de": " Prozent",
    "en": " percent",
    "es": " por ciento",
    "fr": " pour cent",
    "it": " per cento",
    "ja": "パーセント",
    "ko": " 퍼센트",
}
PERCENT |= {"pt": " por cento", "ru": "{v, plural, one { процент} few { процента} many { процентов} other { процента}}", "zh": "百分之"}

# How hours are read ("h": as feminine numbers, "n": as native ones, "": plainly), a full hour, and hours with minutes.
TIMES = {
    "de": ("", "{h} Uhr", "{h} Uhr {m}"),
    "en": ("", "{h} o'clock", "{h} {m}"),
    "es": ("h", "{h} en punto", "{h} y {m}"),
    "fr": ("h", "{h} heures", "{h} heures {m}"),
    "it": ("h", "{h} in punto", "{h} e {m}"),
    "ja": ("", "{h}時", "{h}時{m}分"),
    "ko": ("n", "{h} 시", "{h} 시 {m} 분"),
    "pt": ("h", "{h} horas", "{h} e {m}"),
    "ru": ("", "{h} часов", "{h} {m}"),
    "zh": ("", "{h}点", "{h}点{m}分"),
}
# The order of day, month and year in a date of numbers alone.
DATE_ORDER = {"en": "mdy", "ja": "ymd", "ko": "ymd", "zh": "ymd"}  # of others: dmy
