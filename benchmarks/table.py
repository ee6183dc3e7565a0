"""The README's table of speeds, and its plot, from what benchmarks/peers.py measured; nothing is typed by hand.

    python benchmarks/table.py [--readme README.md] [--plot docs/images/speed.svg] [--check]

1. Results are benchmarks/results/peers-width*.json, one pair of columns each.
2. The table stands in the README between ``<!-- peers: begin -->`` and ``<!-- peers: end -->``; the rest is left alone.
3. The plot shows the first result: speed as bars, with peak memory and seams in figures beside them.
4. `--check` writes nothing and exits 1 if README or plot are not what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
OURS = "unet-deploy"
ENGINES = {"onnxruntime-cpu": "onnxruntime", "openvino": "OpenVINO", "torch": "torch"}
LABELS = {
    "loop of tiles": "plain loop, the paper's tiles",
    "loop of large tiles": "plain loop, tiles of 1,212",
    "whole image": "whole image in one pass",
    "MONAI 0.25": "MONAI, overlap 0.25 (its default)",
    "MONAI 0.25, torch": "MONAI, overlap 0.25 (its default)",
    "MONAI 0.25, torch, batch 4": "MONAI, overlap 0.25, batch 4",
    "MONAI 0.125, large windows": "MONAI, overlap 0.125, windows of 1,024",
    "bioimageio.core": "bioimageio.core, blocks of 576",
    "bioimageio.core, large blocks": "bioimageio.core, blocks of 1,216",
    "MONAI 0.5": "MONAI, overlap 0.5",
    "MONAI 0.5, gaussian": "MONAI, overlap 0.5, gaussian",
    "torch loop": "plain loop, the paper's tiles",
    "dask.map_overlap": "`dask.map_overlap`, the paper's tiles",
    "dask.map_overlap, large chunks": "`dask.map_overlap`, chunks of 1,024",
    "unet-deploy": "**unet-deploy**",
    "unet-deploy, int8": "**unet-deploy**, int8",
    "unet-deploy, probabilities too": "**unet-deploy**, probabilities too",
}

Row = dict[str, Any]
Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "speed.svg")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    results = read_results(options.results)
    if not results:
        parser.error(f"no peers-width*.json in {options.results}: run benchmarks/peers.py first")
    text = options.readme.read_text(encoding="utf-8")
    new = {options.readme: replace_table(text, make_table(results)), options.plot: make_plot(results[0])}
    stale = [path for path, content in new.items() if not path.exists() or path.read_text(encoding="utf-8") != content]
    if options.check:
        sys.exit("\n".join(f"{path} is not what the results say" for path in stale) or 0)
    for path in stale:
        path.write_text(new[path], encoding="utf-8", newline="\n")
        print(path)


def read_results(folder: Path) -> list[Result]:
    """Return the results in a folder, the narrowest network first."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("peers-width*.json")]
    return sorted(results, key=lambda r: (r["width"], r["engine"] != "openvino", r["engine"]))


def replace_table(text: str, table: str) -> str:
    """Return a page with the table between its marks, which must be there once."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise SystemExit(f"the page needs one {BEGIN} with {END} after it")
    return f"{before}{begin}\n{table}{end}{after}"


def make_table(results: list[Result]) -> str:
    """Return the table in Markdown, fastest first by the first result that has a line."""
    rows = [{(row["name"], row["engine"]): row for row in result["rows"]} for result in results]
    names = dict.fromkeys(name for of_one in rows for name in of_one)
    order = sorted(names, key=lambda name: tuple(_place(of_one.get(name)) for of_one in rows))
    head = ["", "engine"]
    for result in results:
        head += [f"width {result['width']}: Mpx/s", "time", "memory"]
    head.append("labels that differ")
    lines = [_line(head), "|---|---|" + "--:|" * (len(head) - 2)]
    for name in order:
        cells = [LABELS.get(name[0], name[0]), ENGINES.get(name[1], name[1])]
        for of_one in rows:
            cells += _cells(of_one.get(name))
        cells.append(max((_seams(of_one.get(name)) for of_one in rows), key=_as_number))
        lines.append(_line(cells))
    return "\n".join([*lines, "", *(_caption(result) for result in results), ""])


def make_plot(result: Result) -> str:
    """Return an SVG with a bar for each line, readable on a light and on a dark page: it brings its own ground."""
    rows = sorted((r for r in result["rows"] if "mpx_per_s" in r), key=lambda r: -r["mpx_per_s"])
    fastest = max(row["mpx_per_s"] for row in rows)
    left, wide, step, top, width = 360, 260, 24, 64, 920
    height = top + step * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(_title(result))}</title>",
        "<style>.g{fill:#ffffff}.t{fill:#1f2328}.m{fill:#59636e}.o{fill:#0969da}.p{fill:#9aa4af}"
        "@media(prefers-color-scheme:dark){.g{fill:#0d1117}.t{fill:#f0f6fc}.m{fill:#9198a1}.o{fill:#4493f8}"
        ".p{fill:#656c76}}</style>",
        f'<rect class="g" width="{width}" height="{height}" rx="6"/>',
        f'<text class="t" x="16" y="26" font-weight="600">{escape(_title(result))}</text>',
        f'<text class="m" x="{left}" y="50">Mpx/s</text>',
        f'<text class="m" x="{width - 150}" y="50" text-anchor="end">peak memory</text>',
        f'<text class="m" x="{width - 16}" y="50" text-anchor="end">labels that differ</text>',
    ]
    for i, row in enumerate(rows):
        y = top + step * i
        is_ours = row["name"].startswith(OURS)
        bar = max(round(wide * row["mpx_per_s"] / fastest), 1)
        name = f"{_plain(row['name'])} · {ENGINES.get(row['engine'], row['engine'])}"
        weight = ' font-weight="600"' if is_ours else ""
        parts += [
            f'<text class="t" x="{left - 10}" y="{y + 13}" text-anchor="end"{weight}>{escape(name)}</text>',
            f'<rect class="{"o" if is_ours else "p"}" x="{left}" y="{y + 1}" width="{bar}" height="16" rx="2"/>',
            f'<text class="t" x="{left + bar + 6}" y="{y + 13}">{row["mpx_per_s"]:.2f}</text>',
            f'<text class="t" x="{width - 150}" y="{y + 13}" text-anchor="end">{escape(_memory(row))}</text>',
            f'<text class="t" x="{width - 16}" y="{y + 13}" text-anchor="end">{escape(_seams(row))}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _place(row: Row | None) -> float:
    return -row["mpx_per_s"] if row and "mpx_per_s" in row else 0.0


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    if "not_measured" in row:
        return [row["not_measured"].partition(":")[0], "", ""]
    times = f"{row['times_ours']['wall']:.2f}×" if "times_ours" in row else ""
    return [f"{row['mpx_per_s']:.2f}", times, _memory(row)]


def _memory(row: Row) -> str:
    mib = row["peak_mib"]
    return f"{mib:,} MiB" if mib < 10_000 else f"{mib / 1024:.1f} GiB"


def _seams(row: Row | None) -> str:
    """Return the share of labels that differ from one pass; int8's differ by rounding, which is another matter."""
    if row is None or "labels_differ" not in row:
        return ""
    share = row["labels_differ"]
    note = " (rounding)" if "labels_differ_from" in row else ""
    if share == 0:
        return f"0{note}"
    return f"< 0.001 %{note}" if share < 1e-5 else f"{share * 100:.2g} %{note}"


def _as_number(seams: str) -> float:
    if not seams:
        return -1.0
    return float(seams.removeprefix("< ").split()[0])


def _plain(name: str) -> str:
    return LABELS.get(name, name).replace("**", "").replace("`", "")


def _title(result: Result) -> str:
    side = f"{result['side']:,}"
    return f"{side} × {side} pixels, Zarr to Zarr, width {result['width']}, {result['threads']} CPU threads"


def _caption(result: Result) -> str:
    machine = result["machine"]
    versions = dict(machine["versions"])
    for row in result["rows"]:
        versions |= row.get("versions", {})
    known = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()) if name != OURS)
    return (
        f"Width {result['width']}: {result['side']:,}² pixels of {result['data']}, Zarr to Zarr, medians of "
        f"{result['runs']} alternating runs, {result['threads']} threads, {machine['cpu']}; "
        f"`{result['command']}`. {known}.\n"
    )


if __name__ == "__main__":
    main()
