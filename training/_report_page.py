"""The training report's page: tables, figures and the style, as HTML that needs nothing beside it.

Every text given is escaped here, so that a name may hold any character.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

REFRESH_S = 30

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #666; --line: #ddd; --ground: #fff; --curve: #0072b2;
  --raw: #0072b255; --best: #d55e00; --strong: #fff3c4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --faint: #a2a2a2; --line: #3c3c3c; --ground: #161616;
  --curve: #56b4e9; --raw: #56b4e977; --best: #ff9a4d; --strong: #4a3c00 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1.5rem; color: var(--ink);
  background: var(--ground) }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2.2rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 }
th, td { text-align: right; padding: .15rem .9rem; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child, td:first-child, .facts td { text-align: left; overflow-wrap: anywhere }
tr.strong { background: var(--strong); font-weight: 600 }
.legend span { display: inline-block; margin-right: 1.4rem; white-space: nowrap }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border: 1px solid #888 }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .7rem 1rem; align-items: start }
figure { margin: 0; min-width: 0; max-width: 44rem }
img { width: 100%; max-width: 44rem; height: auto; image-rendering: pixelated; display: block; background: #161616 }
figcaption, .note { color: var(--faint); font-size: .87rem }
.warning { border-left: 4px solid var(--best); padding-left: .8rem }
.bar { display: flex; align-items: center; gap: .6rem; max-width: 30rem } .bar i { flex: 1; height: .9rem }
.chart { width: 100%; max-width: 44rem; height: auto; display: block; font: 12px system-ui, sans-serif }
.chart text { fill: var(--ink) } .chart .label { fill: var(--faint) }
.chart .marked { fill: var(--best); font-weight: 600 }
.chart path, .chart polyline { fill: none } .axis { stroke: var(--faint) } .grid { stroke: var(--line) }
.curve { stroke: var(--curve); stroke-width: 1.8; stroke-linejoin: round } .raw { stroke: var(--raw) }
.dot { fill: var(--curve) } .mark { fill: none; stroke: var(--best); stroke-width: 2 }
""".strip()


def page(title: str, sections: Iterable[str], *, is_over: bool) -> str:
    """Return the document; while the run is not over, a browser reads it again every REFRESH_S seconds."""
    refresh = "" if is_over else f"<meta http-equiv='refresh' content='{REFRESH_S}'>"
    return "\n".join(
        [
            f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>{refresh}",
            "<meta name='viewport' content='width=device-width'>",
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            *sections,
            "</body></html>\n",
        ]
    )


def heading(text: str) -> str:
    """Return the heading of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def subheading(text: str) -> str:
    """Return the heading of a part of a section."""
    return f"<h3>{html.escape(text)}</h3>"


def note(text: str) -> str:
    """Return an explanation in small print."""
    return f"<p class='note'>{html.escape(text)}</p>"


def warning(text: str) -> str:
    """Return something that asks for attention."""
    return f"<p class='warning'>{html.escape(text)}</p>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and what they are."""
    body = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table class='facts'>{body}</table>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, strong: Iterable[int] = ()) -> str:
    """Return a table; the rows of these numbers stand out."""
    marked = set(strong)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr{' class=strong' if number in marked else ''}>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def image(source: str, *, alt: str, caption: str) -> str:
    """Return a picture with what is written beneath it; `alt` says it to those who do not see it."""
    return (
        f"<figure><img src='{source}' alt='{html.escape(alt, quote=True)}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def chart(svg: str, *, caption: str) -> str:
    """Return a chart, which is SVG already, with what is written beneath it."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def row(figures: Iterable[str]) -> str:
    """Return figures side by side, as many as there is room for."""
    return f"<div class='row'>{''.join(figures)}</div>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return what colours mean: ``#rrggbb`` and words."""
    swatches = (f"<span><i style='background:{colour}'></i>{html.escape(text)}</span>" for colour, text in entries)
    return f"<p class='legend'>{''.join(swatches)}</p>"


def colour_bar(stops: Sequence[str], low: str, middle: str, high: str) -> str:
    """Return a bar of colours with the values at its ends and its middle."""
    words = [html.escape(word) for word in (low, middle, high)]
    half = len(stops) // 2
    lower, upper = (
        f"<i style='background:linear-gradient(90deg,{','.join(part)})'></i>"
        for part in (stops[: half + 1], stops[half:])
    )
    return (
        f"<div class='bar' role='img' aria-label='colours from {words[0]} over {words[1]} to {words[2]}'>"
        f"<span>{words[0]}</span>{lower}<span>{words[1]}</span>{upper}<span>{words[2]}</span></div>"
    )
