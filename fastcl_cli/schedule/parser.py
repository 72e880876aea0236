"""From text to tree: the only place that knows lark.

The text is cut into statements first, and each is parsed on its own by ``grammar/fcs.lark``, so a
file's faults are all found in one pass and one broken statement hides no other.
"""

from __future__ import annotations

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
)
from fastcl_cli.schedule.library import grammar_text
from fastcl_cli.schedule.pieces import BLANK, Piece, split
from fastcl_cli.schedule.settings import SETTING_NAMES
from fastcl_cli.schedule.source import Source, Span, clip
from fastcl_cli.schedule.syntax import (
    CHARACTER,
    END,
    TOKEN,
    Unexpected,
    explain,
    first_word,
    looks_like_phase,
    missing_semicolon,
)
from fastcl_cli.schedule.words import (
    CLAUSES,
    MAX_CLAUSES,
    MAX_COMMENTS,
    MAX_PHASES,
    MAX_SETTINGS,
    MAX_STATEMENT_CHARACTERS,
    MAX_STATEMENT_WITH_STRING,
    MAX_STATEMENT_WORDS,
    MAX_STATEMENTS,
    SIDES,
    UNITS,
)
from fastcl_cli.units import parse_decimal


def parse(source: Source, faults: Collector) -> ast.Schedule:
    """The tree of a schedule; what cannot be read is kept in ``faults`` and left `ast.Broken`."""
    if source.text.count("#") > MAX_COMMENTS:
        message = f"more than {MAX_COMMENTS:,} comments"
        faults.add("FCS002", Span(source, 0, 1), message, "is this a schedule?")
        return ast.Schedule((), (), Span(source, 0, len(source.text)))
    pieces = split(source)
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


def _parse_piece(source: Source, piece: Piece, faults: Collector) -> list[ast.Statement]:
    """The statement that a piece is, or the statements where a ``;`` between them is missing."""
    whole = Span(source, piece.start, piece.end)
    broken = ast.Broken(first_word(piece.text), looks_like_phase(piece.text), whole)
    size = len("".join(piece.text.split()))
    limit = MAX_STATEMENT_WITH_STRING if '"' in piece.text else MAX_STATEMENT_CHARACTERS
    if size > limit:
        message = f"a statement of {size:,} characters; at most {limit:,} are allowed"
        faults.add(
            "FCS002", Span(source, piece.start, piece.start + 1), message, "is a `;` missing?"
        )
        return [broken]
    words = len(TOKEN.findall(piece.text))
    if words > MAX_STATEMENT_WORDS:
        message = f"a statement of {words:,} words; at most {MAX_STATEMENT_WORDS} are allowed"
        faults.add(
            "FCS002", Span(source, piece.start, piece.start + 1), message, "is a `;` missing?"
        )
        return [broken]
    try:
        tree = _lark().parse(piece.text)
        statement = _Builder(source, piece, faults).statement(tree)
    except UnexpectedInput as fault:
        error = _unexpected(fault)
        cut = missing_semicolon(piece.text, error)
        if cut is None:
            faults.keep(explain(source, piece, error).diagnostic)
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


def _parse_parts(source: Source, piece: Piece, cut: int, faults: Collector) -> list[ast.Statement]:
    """Report the ``;`` that is missing before ``cut`` and parse what stands on either side."""
    text = piece.text[:cut].rstrip(BLANK)
    end = piece.start + len(text)
    word = first_word(piece.text[cut:])
    help = f"put `;` between `{clip(text.split()[-1], 20)}` and `{clip(word, 20)}`"
    message = f"`;` is missing before `{clip(word, 20)}`"
    faults.add("FCS004", Span(source, end - 1, end), message, help)
    parts = [
        Piece(text, piece.start, end, piece.remarks),
        Piece(piece.text[cut:], piece.start + cut, piece.end, ast.Remarks()),
    ]
    return [s for part in parts for s in _parse_piece(source, part, faults)]


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


def _unexpected(error: UnexpectedInput) -> Unexpected:
    """lark's fault, without lark."""
    offset = int(error.pos_in_stream or 0)
    if isinstance(error, UnexpectedCharacters):
        return Unexpected(offset, CHARACTER, str(error.char), frozenset())
    token = getattr(error, "token", None)
    expected = frozenset(getattr(error, "expected", ()))
    if token is None or token.type == END:
        return Unexpected(offset, END, "", expected)
    return Unexpected(offset, str(token.type), str(token), expected)


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

    def __init__(self, source: Source, piece: Piece, faults: Collector) -> None:
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
                first_word(self.piece.text), isinstance(made, ast.Phase), whole, self.piece.remarks
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
