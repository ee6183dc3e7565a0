"""An evaluation as something to look at: one HTML file, one PNG, or a folder of both.

1. The HTML needs nothing beside it: pictures are data URIs, there is no script and no font to fetch.
2. The PNG is the same on one page: the summary, the legend, and the slices below one another.
3. The folder holds ``report.html``, ``report.png``, ``scores.json`` and each slice as ``slice_NN.png``.

Nothing is written before everything is drawn, and a file appears whole or not at all.
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.cli._evaluation import Table
from unet_deploy.cli._evaluation_pictures import TITLES, Legend, SlicePicture
from unet_deploy.errors import MissingDependencyError, OutputExistsError, OutputPathError
from unet_deploy.picture import encode_png, side_by_side, write_png

MAX_SLICES = 16
GAP = 8
_MARGIN, _LINE, _FONT = 24, 20, 14
_INK, _FAINT = (20, 20, 20), (110, 110, 110)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1.5rem; color: #1a1a1a }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .15rem .9rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, td.text { text-align: left }
tr.yours { background: #fff3c4; font-weight: 600 }
.legend span { display: inline-block; margin-right: 1.4rem; white-space: nowrap }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border: 1px solid #888 }
.row { display: flex; gap: .5rem } figure { margin: 0; flex: 1 1 0; min-width: 0 }
img { width: 100%; height: auto; image-rendering: pixelated; display: block; background: #161616 }
figcaption, .note { color: #666; font-size: .87rem }
""".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report says; in `tables`, rows that start with ``>`` are the user's own."""

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    legend: Legend
    pictures: tuple[SlicePicture, ...]
    n_slices: int


def check_report_path(path: Path, *, overwrite: bool) -> None:
    """Refuse a place where the report cannot be written.

    Raises
    ------
    OutputExistsError
        If something is there and `overwrite` was not given.
    OutputPathError
        If the name ends neither in .html, .png nor without a suffix, its folder is missing, or `overwrite` would
        replace a folder by a file, or a folder that holds no report.
    MissingDependencyError
        If a PNG is wanted, alone or in a folder, and Pillow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in (".html", ".png", ""):
        raise OutputPathError(
            f"the report {path} ends in {path.suffix}",
            ".html, .png, or a folder's name without a dot was expected",
            fix=f"--report {path.with_suffix('.html')}",
        )
    if not path.absolute().parent.is_dir():
        raise OutputPathError(
            f"the folder of the report {path} does not exist",
            f"{path.absolute().parent} was expected to be a folder",
            fix="create it, or choose another --report",
        )
    if suffix != ".html":
        _import_pillow()
    if not path.exists():
        return
    if not overwrite:
        raise OutputExistsError(
            f"the report {path} exists",
            "nothing was written",
            fix="choose another --report, or replace it with --overwrite",
        )
    is_mine = path.is_file() if suffix else path.is_dir() and (path / "report.html").is_file()
    if not is_mine:
        raise OutputPathError(
            f"{path} is no report of this kind, so --overwrite does not replace it",
            "a file ending in .html or .png was expected, or a folder with report.html",
            fix="choose another --report",
        )


def choose_slices(count: int) -> list[int]:
    """Return at most MAX_SLICES numbers spread over 0..count - 1, the first and last among them.

    >>> choose_slices(3), choose_slices(100)[:3], choose_slices(100)[-1]
    ([0, 1, 2], [0, 7, 13], 99)
    """
    return sorted({round(float(at)) for at in np.linspace(0, count - 1, min(count, MAX_SLICES))})


def write_report(path: Path, report: Report, facts: dict[str, Any]) -> Path:
    """Write the report; return the file to open.

    Raises
    ------
    OutputPathError
        If it cannot be written.
    MissingDependencyError
        If Pillow, which draws the text of a PNG, is not installed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".html":
            return _write_text(path, make_html(report))
        if suffix == ".png":
            return write_png(path, make_page(report))
        page, text = make_page(report), make_html(report)
        path.mkdir(exist_ok=True)
        for old in path.glob("slice_*.png"):
            old.unlink()
        for number, picture in enumerate(report.pictures):
            write_png(path / f"slice_{number:02}.png", side_by_side(picture.panels, gap=GAP))
        write_png(path / "report.png", page)
        _write_text(path / "scores.json", json.dumps(facts, indent=2) + "\n")
        return _write_text(path / "report.html", text)
    except OSError as error:
        raise OutputPathError(
            f"the report {path} cannot be written: {error.strerror or error}",
            f"{type(error).__name__} at {error.filename or path}",
            fix="choose a --report where you may write",
        ) from error


def _write_text(path: Path, text: str) -> Path:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


# ---- HTML


def make_html(report: Report) -> str:
    """Return the report as one HTML document."""
    parts = [
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(report.title)}</title>",
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(report.title)}</h1>",
        "<table>" + "".join(_html_row(row, text_columns=2) for row in report.facts) + "</table>",
    ]
    for table in report.tables:
        parts += [f"<h2>{html.escape(table.title)}</h2>", _html_table(table)]
    parts += [f"<p class='note'>{html.escape(note)}</p>" for note in report.notes]
    if report.pictures:
        shown = f"{len(report.pictures)} of {report.n_slices} slices, spread over all"
        parts.append(f"<h2>{shown if len(report.pictures) < report.n_slices else 'all slices'}</h2>")
        swatches = (f"<span><i style='background:{c}'></i>{html.escape(text)}</span>" for c, text in report.legend)
        parts.append(f"<p class='legend'>{''.join(swatches)}</p>")
    for picture in report.pictures:
        parts.append(f"<h3>{html.escape(picture.name)}</h3><p class='note'>{html.escape(picture.caption)}</p>")
        figures = (
            f"<figure><img alt='{title} of {html.escape(picture.name, quote=True)}' src='{_data_uri(panel)}'>"
            f"<figcaption>{title}</figcaption></figure>"
            for title, panel in zip(TITLES, picture.panels, strict=True)
        )
        parts.append(f"<div class='row'>{''.join(figures)}</div>")
    return "\n".join([*parts, "</body></html>\n"])


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    return f"<table><tr>{head}</tr>{''.join(_html_row(row) for row in table.rows)}</table>"


def _html_row(cells: Sequence[str], *, text_columns: int = 1) -> str:
    mark = " class='yours'" if cells[0].startswith(">") else ""
    columns = "".join(
        f"<td{' class=text' if index < text_columns or not _is_number(cell) else ''}>{html.escape(cell)}</td>"
        for index, cell in enumerate(cells)
    )
    return f"<tr{mark}>{columns}</tr>"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell in ("none", "-")


def _data_uri(picture: npt.NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode("ascii")


# ---- PNG


def make_page(report: Report) -> npt.NDArray[np.uint8]:
    """Return the report as one picture (y, x, 3).

    Raises
    ------
    MissingDependencyError
        If Pillow is not installed.
    """
    image, image_draw, image_font = _import_pillow()
    font = image_font.load_default(_FONT)
    page = _Page(font)
    page.add_row([report.title], [0])
    page.add_table(Table(title="", header=(), rows=report.facts))
    for table in report.tables:
        page.add_table(table)
    for note in report.notes:
        page.add_row([note], [0], colour=_FAINT)
    page.y += _LINE // 2
    for colour, text in report.legend if report.pictures else ():
        page.swatches.append((page.y, colour))
        page.add_row([text], [_LINE + 4])
    for picture in report.pictures:
        page.add_picture(picture)
    canvas = image.new("RGB", (page.width + _MARGIN, page.y + _MARGIN), "white")
    draw = image_draw.Draw(canvas)
    for x, y, text, ink in page.texts:
        draw.text((x, y), text, fill=ink, font=font)
    for y, colour in page.swatches:
        draw.rectangle((_MARGIN, y + 2, _MARGIN + 14, y + 16), fill=colour, outline=_FAINT)
    drawn = np.array(canvas)
    for y, row in page.images:
        drawn[y : y + row.shape[0], _MARGIN : _MARGIN + row.shape[1]] = row
    return drawn


def _import_pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "PIL":
            raise
        raise MissingDependencyError.of_extra("pillow", extra="evaluate", purpose="a report as PNG") from error
    return Image, ImageDraw, ImageFont


class _Page:
    """Where everything goes, from top to bottom; `width` is what it needs."""

    def __init__(self, font: Any) -> None:
        self._font = font
        self.y = _MARGIN
        self.width = 640
        self.texts: list[tuple[int, int, str, tuple[int, int, int]]] = []
        self.swatches: list[tuple[int, str]] = []
        self.images: list[tuple[int, npt.NDArray[np.uint8]]] = []

    def _length(self, text: str) -> int:
        return int(self._font.getlength(text)) + 1

    def add_row(self, cells: Sequence[str], at: Sequence[int], *, colour: tuple[int, int, int] = _INK) -> None:
        for cell, x in zip(cells, at, strict=True):
            self.texts.append((_MARGIN + x, self.y, cell, colour))
            self.width = max(self.width, _MARGIN + x + self._length(cell))
        self.y += _LINE

    def add_table(self, table: Table) -> None:
        self.y += _LINE // 2
        if table.title:
            self.add_row([table.title], [0])
        rows = [table.header, *table.rows] if table.header else [*table.rows]
        widths = [max(self._length(row[column]) for row in rows) for column in range(len(rows[0]))]
        at = [sum(widths[:column]) + 20 * column for column in range(len(widths))]
        for row in rows:
            self.add_row(row, at, colour=_FAINT if row is table.header else _INK)

    def add_picture(self, picture: SlicePicture) -> None:
        self.y += _LINE
        self.add_row([f"{picture.name}: {picture.caption}"], [0])
        step = picture.panels[0].shape[1] + GAP
        self.add_row(TITLES, [number * step for number in range(len(TITLES))], colour=_FAINT)
        row = side_by_side(picture.panels, gap=GAP)
        self.images.append((self.y, row))
        self.width = max(self.width, _MARGIN + row.shape[1])
        self.y += row.shape[0]
