"""From text to tree: the only place that knows lark.

The text is cut into statements first, and each is parsed on its own by ``grammar/fcs.lark``, so a
file's faults are all found in one pass and one broken statement hides no other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import cast

from lark import Lark, Token, Tree, UnexpectedCharacters, UnexpectedInput

from fastcl_cli.schedule import ast
from fastcl_cli.schedule.diagnostics import (
    Collector,
    FaultError,
    TooManyFaultsError,
    did_you_mean,
    listed,
)
from fastcl_cli.schedule.library import grammar_text
from fastcl_cli.schedule.settings import SETTING_NAMES
from fastcl_cli.schedule.source import Source, Span, clip
from fastcl_cli.schedule.words import (
    CLAUSES,
    MAX_BYTES,
    MAX_CLAUSES,
    MAX_COMMENTS,
    MAX_PHASES,
    MAX_STATEMENT_CHARACTERS,
    MAX_STATEMENT_WITH_STRING,
    MAX_STATEMENT_WORDS,
    SIDES,
    UNITS,
)
from fastcl_cli.units import parse_decimal

MAX_SETTINGS = 4 * len(SETTING_NAMES)
MAX_STATEMENTS = MAX_PHASES + MAX_SETTINGS
_BLANK = " \t\r\n"


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


def parse(source: Source, faults: Collector) -> ast.Schedule:
    """The tree of a schedule; what cannot be read is kept in ``faults`` and left `ast.Broken`."""
    if source.text.count("#") > MAX_COMMENTS:
        message = f"more than {MAX_COMMENTS:,} comments"
        faults.add("FCS002", Span(source, 0, 1), message, "is this a schedule?")
        return ast.Schedule((), (), Span(source, 0, len(source.text)))
    pieces = _split(source)
    statements: list[ast.Statement] = []
    closing: tuple[ast.Comment, ...] = ()
    settings, phases = 0, 0
    if len(pieces) > MAX_STATEMENTS:
        piece = pieces[MAX_STATEMENTS]
        message = f"more than {MAX_STATEMENTS:,} statements"
        help = f"at most {MAX_PHASES:,} phases are allowed; a ramp is one phase"
        faults.add("FCS002", Span(source, piece.start, piece.start + 1), message, help)
        pieces = []
    try:
        for piece in pieces:
            if piece.start == piece.end:
                closing = piece.remarks.above
            else:
                statements += _parse_piece(source, piece, faults)
                settings += isinstance(statements[-1], ast.Setting)
                phases += isinstance(statements[-1], ast.Phase)
            if phases > MAX_PHASES:
                message = f"more than {MAX_PHASES:,} phases; the rest is not read"
                span = Span(source, piece.start, piece.end)
                faults.add("FCS002", span, message, "a ramp is one phase")
                break
            if settings > MAX_SETTINGS:
                message = f"more than {MAX_SETTINGS} settings; the rest is not read"
                help = f"there are {len(SETTING_NAMES)}, and each stands once"
                faults.add("FCS002", Span(source, piece.start, piece.end), message, help)
                break
    except TooManyFaultsError:
        pass
    return ast.Schedule(tuple(statements), closing, Span(source, 0, len(source.text)))


@dataclass(slots=True)
class _Piece:
    """A statement's text (comments blanked out) and its place; empty at the end of the file."""

    text: str
    start: int
    end: int
    remarks: ast.Remarks


_LEXEME = re.compile(r'#[^\n]*|"[^"\n]*"?|;|[^#";]+')


def _split(source: Source) -> list[_Piece]:
    """Cut the text at every ``;`` outside comments and strings, and after an open string."""
    pieces: list[_Piece] = []
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
            empty = empty and not lexeme.strip(_BLANK)
        if lexeme == ";" or is_open:
            pieces.append(_piece(source, pieces, "".join(parts), begin, comments))
            parts, comments, begin, empty = [], [], match.end(), True
            if len(pieces) > MAX_STATEMENTS:
                return pieces
    rest = "".join(parts)
    if not empty:
        # The last statement needs no `;`: what follows its text is the end of the file.
        size = len(rest.rstrip(_BLANK))
        inside = [comment for comment in comments if comment[0] < begin + size]
        pieces.append(_piece(source, pieces, rest[:size], begin, inside))
        rest, begin, comments = rest[size:], begin + size, comments[len(inside) :]
    pieces.append(_piece(source, pieces, rest, begin, comments))
    return pieces


def _piece(
    source: Source,
    before: list[_Piece],
    text: str,
    begin: int,
    comments: list[tuple[int, str]],
) -> _Piece:
    """The piece that ``text`` (from offset ``begin``) is, with its comments; a first comment on
    the line on which the statement before ends goes to that one."""
    body = text.strip(_BLANK)
    start = begin + len(text) - len(text.lstrip(_BLANK))
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
    return _Piece(body, start, end, ast.Remarks(tuple(above), None, blank))


def _parse_piece(source: Source, piece: _Piece, faults: Collector) -> list[ast.Statement]:
    """The statement that a piece is, or the statements where a ``;`` between them is missing."""
    whole = Span(source, piece.start, piece.end)
    broken = ast.Broken(_first_word(piece.text), _looks_like_phase(piece.text), whole)
    size = len("".join(piece.text.split()))
    limit = MAX_STATEMENT_WITH_STRING if '"' in piece.text else MAX_STATEMENT_CHARACTERS
    if size > limit:
        message = f"a statement of {size:,} characters; at most {limit:,} are allowed"
        faults.add(
            "FCS002", Span(source, piece.start, piece.start + 1), message, "is a `;` missing?"
        )
        return [broken]
    words = len(_TOKEN.findall(piece.text))
    if words > MAX_STATEMENT_WORDS:
        message = f"a statement of {words:,} words; at most {MAX_STATEMENT_WORDS} are allowed"
        faults.add(
            "FCS002", Span(source, piece.start, piece.start + 1), message, "is a `;` missing?"
        )
        return [broken]
    try:
        tree = _lark().parse(piece.text)
        statement = _Builder(source, piece, faults).statement(tree)
    except UnexpectedInput as error:
        cut = _missing_semicolon(piece.text, error)
        if cut is None:
            faults.keep(_explain(source, piece, error).diagnostic)
            return [broken]
    except FaultError as fault:
        faults.keep(fault.diagnostic)
        return [broken]
    else:
        second = _second_statement(source, statement)
        if second is None:
            return [statement]
        cut = second - piece.start
    return _parse_parts(source, piece, cut, faults)


def _parse_parts(source: Source, piece: _Piece, cut: int, faults: Collector) -> list[ast.Statement]:
    """Report the ``;`` that is missing before ``cut`` and parse what stands on either side."""
    text = piece.text[:cut].rstrip(_BLANK)
    end = piece.start + len(text)
    word = _first_word(piece.text[cut:])
    help = f"put `;` between `{clip(text.split()[-1], 20)}` and `{clip(word, 20)}`"
    message = f"`;` is missing before `{clip(word, 20)}`"
    faults.add("FCS004", Span(source, end - 1, end), message, help)
    parts = [
        _Piece(text, piece.start, end, piece.remarks),
        _Piece(piece.text[cut:], piece.start + cut, piece.end, ast.Remarks()),
    ]
    return [s for part in parts for s in _parse_piece(source, part, faults)]


_TOKEN = re.compile(r'[A-Za-z0-9_.]+|"[^"\n]*"|->|[^ \t\r\n]')
_RANGE = re.compile(
    r"(?:\b(?P<unit>[A-Za-z_]+)[ \t\r\n]+)?(?<![0-9A-Za-z_.>])"
    r"(?P<number>[0-9.]+[ \t\r\n]*%?)[ \t\r\n]*$"
)
_RANGE_END = re.compile(r"-[ \t\r\n]*[0-9.]+[ \t\r\n]*%?[ \t\r\n]*:")


def _first_word(text: str) -> str:
    match = _TOKEN.match(text)
    return match.group() if match else text[:1]


def _looks_like_phase(text: str) -> bool:
    return ":" in text or re.match(r"(epochs?|steps?)\b|[0-9]", text) is not None


def _missing_semicolon(text: str, error: UnexpectedInput) -> int | None:
    """Where a second statement starts, if the fault is a range in the midst of a statement."""
    if isinstance(error, UnexpectedCharacters):
        offset = int(error.pos_in_stream or 0)
        is_range = _LOOKALIKES.get(text[offset]) in ("-", ":")
    else:
        token = getattr(error, "token", None)
        offset = token.start_pos if token is not None else 0
        is_range = token is not None and token.type in ("MINUS", "COLON")
    match = _RANGE.search(text, 0, offset) if is_range else None
    if match is None or match.start() == 0:
        return None
    if match["unit"] in UNITS:
        return match.start()
    # Without a unit it is a range only if it goes on like one.
    start = match.start("number")
    return start if _RANGE_END.match(text, offset) and text[:start].strip(_BLANK) else None


def _second_statement(source: Source, statement: ast.Statement) -> int | None:
    """Where a second statement starts, if a setting's values go on with another setting's name
    that is first on its line."""
    if not isinstance(statement, ast.Setting):
        return None
    for value in statement.values[1:]:
        if isinstance(value, ast.Word) and value.text in SETTING_NAMES:
            start = value.span.start
            before = source.text[statement.span.start : start].rstrip(" \t")
            if before.endswith("\n"):
                return start
    return None


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


def _explain(source: Source, piece: _Piece, error: UnexpectedInput) -> FaultError:
    """The fault that a syntax error is."""
    if isinstance(error, UnexpectedCharacters):
        return _unexpected_character(source, piece.start + int(error.pos_in_stream or 0))
    token = getattr(error, "token", None)
    expected = sorted({_NAMES[name] for name in getattr(error, "expected", ()) if name in _NAMES})
    help = f"expected {listed(expected)}" if expected else ""
    if token is None or token.type == "$END":
        span = Span(source, piece.end - 1, piece.end)
        return FaultError("FCS003", span, "the statement ends too early", help)
    start = piece.start + int(token.start_pos)
    span = Span(source, start, start + len(token))
    if token.type == "MINUS" and "`-`" not in expected:
        help += "; numbers have no sign"
    return FaultError("FCS003", span, f"unexpected `{clip(token)}`", help.lstrip("; "))


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


@cache
def _lark() -> Lark:
    return Lark(
        grammar_text(),
        parser="lalr",
        lexer="basic",
        start="statement",
        maybe_placeholders=False,
        propagate_positions=False,
    )


class _Builder:
    """Makes the nodes of one statement from lark's tree."""

    def __init__(self, source: Source, piece: _Piece, faults: Collector) -> None:
        self.source = source
        self.piece = piece
        self.faults = faults
        self.damaged = False

    def statement(self, tree: Tree[Token]) -> ast.Statement:
        inner = cast("Tree[Token]", tree.children[0])
        whole = Span(self.source, self.piece.start, self.piece.end)
        made: ast.Statement
        if inner.data == "phase":
            made = self.phase(inner, whole)
        else:
            name, *values = inner.children
            made = ast.Setting(
                self.word(cast("Token", name)),
                tuple(self.value(value) for value in values),
                whole,
                self.piece.remarks,
            )
        if self.damaged:
            return ast.Broken(
                _first_word(self.piece.text), isinstance(made, ast.Phase), whole, self.piece.remarks
            )
        return made

    def phase(self, tree: Tree[Token], whole: Span) -> ast.Phase:
        bounds, *clauses = cast("list[Tree[Token]]", tree.children)
        *units, start, end = bounds.children
        unit = self.word(cast("Token", units[0])) if units else None
        first, last = self.number(start), self.number(end)
        if len(clauses) > MAX_CLAUSES:
            message = f"the phase has {len(clauses)} clauses; at most {MAX_CLAUSES} mean something"
            help = "drop and patch, each for online and target, and batch"
            raise FaultError("FCS018", whole, message, help)
        return ast.Phase(
            unit,
            first,
            last,
            tuple(self.clause(clause) for clause in clauses),
            (unit or first).span.to(last.span),
            whole,
            self.piece.remarks,
        )

    def clause(self, tree: Tree[Token]) -> ast.Clause:
        name, *rest = tree.children
        word = self.word(cast("Token", name))
        if word.text not in CLAUSES:
            self.unknown_clause(word)
        parts: dict[str, ast.Number | ast.Word] = {}
        end = word.span
        for part in cast("list[Tree[Token]]", rest):
            child = part.children[0]
            made = self.word(cast("Token", child)) if part.data == "side" else self.number(child)
            parts[str(part.data)] = made
            end = made.span
        return ast.Clause(
            word,
            cast("ast.Number | None", parts.get("amount")),
            cast("ast.Number | None", parts.get("ramp")),
            cast("ast.Number | None", parts.get("stairs")),
            cast("ast.Word | None", parts.get("side")),
            word.span.to(end),
        )

    def unknown_clause(self, word: ast.Word) -> None:
        name = word.text
        if name in SIDES:
            help = f"write `on {name}` after the clause that it is for"
        elif name in SETTING_NAMES:
            help = f"`{name}` is for the whole run: put `;` before it, as a statement of its own"
        elif name in UNITS:
            help = f"put `;` before `{name}`: it starts another phase"
        else:
            help = did_you_mean(name, CLAUSES, "clauses")
        message = f"`{clip(name)}` is not a clause of a phase"
        self.faults.add("FCS008", word.span, message, help)

    def value(self, node: Token | Tree[Token]) -> ast.Value:
        if isinstance(node, Tree):
            return self.options(node) if node.data == "options" else self.number(node)
        if node.type == "NUMBER":
            return self.number(node)
        if node.type == "STRING":
            return ast.Text(str(node[1:-1]), self.span(node))
        if node.type == "ARROW":
            return ast.Arrow(self.span(node))
        return self.word(node)

    def options(self, tree: Tree[Token]) -> ast.Options:
        items = []
        for option in cast("list[Tree[Token]]", tree.children):
            key, value = option.children
            items.append((self.word(cast("Token", key)), self.number(value)))
        whole = Span(self.source, self.piece.start, self.piece.end)
        if items:
            whole = items[0][0].span.to(items[-1][1].span)
        return ast.Options(tuple(items), whole)

    def number(self, node: Token | Tree[Token]) -> ast.Number:
        percent = isinstance(node, Tree)
        token = cast("Token", node.children[0] if isinstance(node, Tree) else node)
        span = self.span(token)
        if isinstance(node, Tree):
            span = span.to(self.span(cast("Token", node.children[1])))
        try:
            return ast.Number(parse_decimal(token), percent, span)
        except ValueError as error:
            self.damaged = True
            message = f"`{clip(token)}` is not a number that fastcl takes"
            self.faults.add("FCS006", self.span(token), message, str(error))
            return ast.Number(Fraction(0), percent, span)

    def word(self, token: Token) -> ast.Word:
        return ast.Word(str(token), self.span(token))

    def span(self, token: Token) -> Span:
        start = self.piece.start + cast("int", token.start_pos)
        return Span(self.source, start, start + len(token))
