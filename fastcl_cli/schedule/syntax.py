"""What to say of a statement that the grammar does not accept."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastcl_cli.schedule.diagnostics import FaultError, listed
from fastcl_cli.schedule.pieces import BLANK, Piece
from fastcl_cli.schedule.source import Source, Span, clip
from fastcl_cli.schedule.words import UNITS

TOKEN = re.compile(r'[A-Za-z0-9_.]+|"[^"\n]*"|->|[^ \t\r\n]')
_RANGE = re.compile(
    r"(?:\b(?P<unit>[A-Za-z_]+)[ \t\r\n]+)?(?<![0-9A-Za-z_.>])"
    r"(?P<number>[0-9.]+[ \t\r\n]*%?)[ \t\r\n]*$"
)
_RANGE_END = re.compile(r"-[ \t\r\n]*[0-9.]+[ \t\r\n]*%?[ \t\r\n]*:")


CHARACTER = "CHARACTER"
END = "$END"


@dataclass(frozen=True, slots=True)
class Unexpected:
    """What the grammar does not accept: at ``offset`` in the statement, a terminal's ``kind`` (or
    `CHARACTER`, one that starts no word, or `END`) with its ``text``, and the terminals that it
    would accept there."""

    offset: int
    kind: str
    text: str
    expected: frozenset[str]


def first_word(text: str) -> str:
    match = TOKEN.match(text)
    return match.group() if match else text[:1]


def looks_like_phase(text: str) -> bool:
    return ":" in text or re.match(r"(epochs?|steps?)\b|[0-9]", text) is not None


def missing_semicolon(text: str, error: Unexpected) -> int | None:
    """Where a second statement starts, if the fault is a range in the midst of a statement."""
    is_range = error.kind in ("MINUS", "COLON") or _LOOKALIKES.get(error.text) in ("-", ":")
    offset = error.offset
    match = _RANGE.search(text, 0, offset) if is_range else None
    if match is None or match.start() == 0:
        return None
    if match["unit"] in UNITS:
        return match.start()
    # Without a unit it is a range only if it goes on like one.
    start = match.start("number")
    return start if _RANGE_END.match(text, offset) and text[:start].strip(BLANK) else None


_NAMES = {
    "NUMBER": "a number",
    "WORD": "a word",
    "STRING": "a string",
    "ARROW": "`->`",
    "MINUS": "`-`",
    "COLON": "`:`",
    "PERCENT": "`%`",
    "EQUAL": "`=`",
    "COMMA": "`,`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "IN": "`in`",
    "ON": "`on`",
    "$END": "`;`",
}
_LOOKALIKES = {
    "–": "-", "—": "-", "−": "-", "→": "->", "“": '"', "”": '"', "„": '"', "'": '"', "：": ":",
    "；": ";", "，": ",", "％": "%", "{": "(", "}": ")", "[": "(", "]": ")",
}  # fmt: skip


def explain(source: Source, piece: Piece, error: Unexpected) -> FaultError:
    """The fault that a syntax error is."""
    if error.kind == CHARACTER:
        return _unexpected_character(source, piece.start + error.offset)
    expected = sorted({_NAMES[name] for name in error.expected if name in _NAMES})
    help = f"expected {listed(expected)}" if expected else ""
    if error.kind == END:
        span = Span(source, piece.end - 1, piece.end)
        return FaultError("FCS003", span, "the statement ends too early", help)
    start = piece.start + error.offset
    span = Span(source, start, start + len(error.text))
    if error.kind == "MINUS" and "`-`" not in expected:
        help += "; numbers have no sign"
    return FaultError("FCS003", span, f"unexpected `{clip(error.text)}`", help.lstrip("; "))


def _unexpected_character(source: Source, offset: int) -> FaultError:
    character = source.text[offset]
    span = Span(source, offset, offset + 1)
    if character == '"':
        line = source.text[offset:].split("\n", 1)[0]
        span = Span(source, offset, offset + len(line))
        return FaultError(
            "FCS005", span, "the string is not closed", 'close it with `"` on its line'
        )
    code = f"U+{ord(character):04X}"
    shown = f"`{character}` ({code})" if character.isprintable() else code
    meant = _LOOKALIKES.get(character)
    help = f"write `{meant}`" if meant else "outside comments and strings, write plain ASCII"
    if character.isascii() and not meant:
        help = "it means nothing here"
    if character.isspace():
        help = "write a plain space"
    return FaultError("FCS003", span, f"unexpected character {shown}", help)
