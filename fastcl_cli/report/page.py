"""The report: one HTML page that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcl_cli import __version__
from fastcl_cli.report.again import environment, reproduce, settings
from fastcl_cli.report.chart import chart_css
from fastcl_cli.report.figures import Figure, plan_strip
from fastcl_cli.report.html import Html, element, join, text
from fastcl_cli.report.runs import Run
from fastcl_cli.report.tables import (
    compared,
    cost,
    decisions,
    evaluation,
    facts,
    log,
    measured_cost,
    plan_table,
    state,
    subtitle,
    warnings,
)

WIDE, NARROW = 1080, 440
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(
    runs: Sequence[Run],
    names: Sequence[str],
    figures: Sequence[Mapping[str, Figure]],
    heat: Sequence[Sequence[Figure]],
    compared_in: Sequence[Figure],
) -> str:
    """The page of one run, or of several.

    Args:
        names: of the runs, all different.
        figures, heat: of each run.
        compared_in: of all together, none for one run.
    """
    title = f"{names[0]}: fastcl report" if len(runs) == 1 else f"{len(runs)} runs: fastcl report"
    body = []
    if len(runs) > 1:
        links = (element("a", name, href=f"#r{i}") for i, name in enumerate(names))
        body += [
            element("header", element("h1", f"{len(runs)} runs"), element("nav", *links)),
            element("section", element("h2", "Side by side"), _grid(compared_in),
                    compared(runs, names)),
        ]  # fmt: skip
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        body.append(_run(run, name, f"r{index}", figures[index], heat[index], len(runs) > 1))
    style = chart_css() + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<footer>Made by fastcl {text(__version__)} from the files of the runs."
        "</footer>\n</body>\n</html>\n"
    )


def _run(
    run: Run,
    name: str,
    key: str,
    figures: Mapping[str, Figure],
    heat: Sequence[Figure],
    several: bool,
) -> Html:
    """All of one run."""
    plan = run.described.plan
    strips = join(
        element("div", Html(plan_strip(plan, WIDE, f"{key}-wide")), class_="wide"),
        element("div", Html(plan_strip(plan, NARROW, f"{key}-narrow")), class_="narrow"),
    )
    top = "h2" if several else "h1"
    curves = [figures[one] for one in ("knn", "loss", "lr") if one in figures]
    speed = [figures[one] for one in ("speed", "wait", "ideal") if one in figures]
    errors = [figures[one] for one in ("error", "variance") if one in figures]
    state_words, state_class = state(run)
    sections = [
        element(
            "header",
            element(top, name, " ", element("span", state_words, class_=f"state {state_class}")),
            element("p", subtitle(run), class_="lead"),
            facts(run),
        ),
        warnings(run),
        _section("Plan", strips, element("p", "Width: epochs. Height: what an image costs.",
                                         class_="note"), plan_table(run, key)),
        _section("Training", _grid(curves)),
        _section("Speed", _grid(speed), measured_cost(run, key)),
        _section("Gradient error", _grid(errors)),
        _section("Decisions", *(_heat(one) for one in heat), decisions(run, key)),
        _section("Cost", cost(run, key)),
        _section("Evaluation", evaluation(run, key)),
        _section("Environment", environment(run, key)),
        _section("How to reproduce it", reproduce(run), settings(run, key)),
        _section("Log", log(run, key)),
    ]  # fmt: skip
    return element("article", *sections, id=key)


def _section(title: str, *content: str) -> Html:
    """A section with its title; nothing where it has no content."""
    if not any(content):
        return Html("")
    return element("section", element("h3", title), *content)


def _grid(figures: Sequence[Figure]) -> Html:
    if not figures:
        return Html("")
    return element("div", *(_figure(one) for one in figures), class_="grid")


def _figure(figure: Figure) -> Html:
    caption = element("figcaption", element("strong", figure.title), " ", figure.note)
    return element("figure", caption, Html(figure.svg))


def _heat(figure: Figure) -> Html:
    """A figure at its own size, which may be wider than the page."""
    caption = element("figcaption", element("strong", figure.title), " ", figure.note)
    box = element(
        "div", Html(figure.svg), class_="scroll heat", tabindex="0", role="region",
        aria_label=figure.title,
    )  # fmt: skip
    return element("figure", caption, box)
