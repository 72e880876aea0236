"""A file's bytes become text, and the text is cut into statements with their comments."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fastcl_cli.schedule import ast
from fastcl_cli.schedule.diagnostics import Collector
from fastcl_cli.schedule.source import Source, Span
from fastcl_cli.schedule.words import MAX_BYTES, MAX_STATEMENTS

BLANK = " \t\r\n"


def decode(name: str, data: bytes, faults: Collector) -> Source:
    """The text of a file's bytes; a byte order mark is dropped, CRLF becomes LF.

    Keeps FCS001 or FCS002 in ``faults`` where it is not UTF-8 or too large; such a source is to be
    reported, not parsed.
    """
    if len(data) > MAX_BYTES:
        source = Source(name, data[:100].decode("utf-8", "replace"))
        message = f"the file has {len(data):,} bytes; at most {MAX_BYTES:,} are allowed"
        faults.add("FCS002", Span(source, 0, 0), message, "is this a schedule?")
        return source
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8").replace("\r\n", "\n").removeprefix("\ufeff")
        source = Source(name, before + "\N{REPLACEMENT CHARACTER}")
        faults.add(
            "FCS001",
            Span(source, len(before), len(before) + 1),
            f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8",
            "save the file as UTF-8 text",
        )
        return source
    return Source(name, text.removeprefix("\ufeff").replace("\r\n", "\n"))


@dataclass(slots=True)
class Piece:
    """A statement's text (comments blanked out) and its place; empty at the end of the file."""

    text: str
    start: int
    end: int
    remarks: ast.Remarks


_LEXEME = re.compile(r'#[^\n]*|"[^"\n]*"?|;|[^#";]+')


def split(source: Source) -> list[Piece]:
    """Cut the text at every ``;`` outside comments and strings, and after an open string."""
    pieces: list[Piece] = []
    parts: list[str] = []
    comments: list[tuple[int, str]] = []
    begin = 0
    empty = True
    for match in _LEXEME.finditer(source.text):
        lexeme = match.group()
        if lexeme[0] == "#" or (lexeme == ";" and empty):
            # An empty statement (`;;`) says nothing and ends nothing.
            parts.append(" " * len(lexeme))
            if lexeme[0] == "#":
                comments.append((match.start(), lexeme))
            continue
        is_open = lexeme[0] == '"' and (len(lexeme) == 1 or lexeme[-1] != '"')
        if lexeme != ";":
            parts.append(lexeme)
            empty = empty and not lexeme.strip(BLANK)
        if lexeme == ";" or is_open:
            pieces.append(_piece(source, pieces, "".join(parts), begin, comments))
            parts, comments, begin, empty = [], [], match.end(), True
            if len(pieces) > MAX_STATEMENTS:
                return pieces
    rest = "".join(parts)
    if not empty:
        # The last statement needs no `;`: what follows its text is the end of the file.
        size = len(rest.rstrip(BLANK))
        inside = [comment for comment in comments if comment[0] < begin + size]
        pieces.append(_piece(source, pieces, rest[:size], begin, inside))
        rest, begin, comments = rest[size:], begin + size, comments[len(inside) :]
    pieces.append(_piece(source, pieces, rest, begin, comments))
    return pieces


def _piece(
    source: Source,
    before: list[Piece],
    text: str,
    begin: int,
    comments: list[tuple[int, str]],
) -> Piece:
    """The piece that ``text`` (from offset ``begin``) is, with its comments; a first comment on
    the line on which the statement before ends goes to that one."""
    body = text.strip(BLANK)
    start = begin + len(text) - len(text.lstrip(BLANK))
    end = start + len(body)
    above: list[ast.Comment] = []
    mark = begin
    for index, (offset, comment) in enumerate(comments):
        gap = source.text[mark:offset]
        if index == 0 and before and offset < start and "\n" not in gap:
            before[-1].remarks = replace(before[-1].remarks, trailing=comment.rstrip())
        else:
            blank = mark > 0 and offset <= start and gap.count("\n") >= 2
            above.append(ast.Comment(comment.rstrip(), blank))
        mark = offset + len(comment)
    blank = 0 < mark <= start and source.text[mark:start].count("\n") >= 2
    return Piece(body, start, end, ast.Remarks(tuple(above), None, blank))
