"""Pieces of HTML. Text becomes HTML here and nowhere else, so that none is left unescaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: str) -> Html:
    """Any text as HTML."""
    return value if isinstance(value, Html) else Html(escape(value))


def number(value: float | int, shown: str) -> Html:
    """A number as people read it, with its exact value for machines."""
    return Html(f'<data value="{value!r}">{escape(shown)}</data>')


def element(tag: str, *content: str, **attributes: str) -> Html:
    """An element; attributes are written as ``class_`` where Python has the word."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
    )
    return Html(f"<{tag}{given}>{''.join(map(text, content))}</{tag}>")


def join(*pieces: str) -> Html:
    """Pieces one after the other."""
    return Html("".join(map(text, pieces)))


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    name: str,
    words: int = 1,
    notes: bool = False,
) -> Html:
    """A table whose first column names its rows; the first ``words`` columns hold words, the
    others figures, but for a last one of ``notes``."""
    kinds = ["word" if index < words else "figure" for index in range(len(head))]
    if notes:
        kinds[-1] = "word note"
    titles = [element("th", t, scope="col", class_=k) for t, k in zip(head, kinds, strict=True)]
    body = []
    for row in rows:
        cells = [element("td", c, class_=k) for c, k in zip(row[1:], kinds[1:], strict=True)]
        body.append(element("tr", element("th", row[0], scope="row"), *cells))
    return element(
        "div",
        element(
            "table",
            element("caption", element("span", caption)),
            element("thead", element("tr", *titles)),
            element("tbody", *body),
            id=name,
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def details(summary: str, *content: str) -> Html:
    """Content that is folded away on the screen."""
    return element("details", element("summary", summary), *content)
