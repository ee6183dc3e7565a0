"""The README's table of speeds is what benchmarks/table.py makes of the results that are kept, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "table.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not part of a source distribution")


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(name: str, engine: str, mpx_per_s: float, **more: Any) -> dict[str, Any]:
    times = {"times_ours": {"wall": round(2 / mpx_per_s, 3), "cpu": 1.0}}
    return (
        {"name": name, "engine": engine, "mpx_per_s": mpx_per_s, "peak_mib": 500, "labels_differ": 0.0} | times | more
    )


def result(width: int, *rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "width": width,
        "side": 4096,
        "runs": 3,
        "threads": 2,
        "engine": "openvino",
        "data": "ISBI 2012 test slices",
        "command": "python benchmarks/peers.py --side 4096",
        "rows": list(rows),
        "machine": {"cpu": "A processor", "versions": {"zarr": "3.1.6", "unet-deploy": "0.1.0"}},
    }


RESULTS = [
    result(
        16,
        row("MONAI 0.25", "openvino", 1.0, labels_differ=0.0028, versions={"monai": "1.6.1"}),
        row("unet-deploy", "openvino", 2.0, labels_differ=1e-7),
        {"name": "whole image", "engine": "openvino", "not_measured": "did not fit: needs 40 GiB, 19 GiB are free"},
    ),
    result(64, row("unet-deploy", "openvino", 0.5, peak_mib=11_000)),
]


def test_the_table_has_a_line_for_each_contender_fastest_first(table: ModuleType) -> None:
    lines = table.make_table(RESULTS).splitlines()
    assert lines[2] == ("| **unet-deploy** | OpenVINO | 2.00 | 1.00× | 500 MiB | 0.50 | 4.00× | 10.7 GiB | < 0.001 % |")
    assert lines[3] == "| MONAI, overlap 0.25 (its default) | OpenVINO | 1.00 | 2.00× | 500 MiB |  |  |  | 0.28 % |"
    assert lines[4] == "| whole image in one pass | OpenVINO | did not fit |  |  |  |  |  |  |"
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "4,096² pixels of ISBI 2012 test slices" in lines[6]
    assert "monai 1.6.1, zarr 3.1.6" in lines[6]


def test_int8_differs_by_rounding_and_the_table_says_so(table: ModuleType) -> None:
    int8 = row("unet-deploy, int8", "openvino", 6.0, labels_differ=0.0024, labels_differ_from="the fp32 network")
    assert "| 0.24 % (rounding) |" in table.make_table([result(16, int8)])


def test_the_plot_is_a_picture_with_a_bar_for_each_measured_line(table: ModuleType) -> None:
    plot = ElementTree.fromstring(table.make_plot(RESULTS[0]))
    bars = [e for e in plot.iter("{http://www.w3.org/2000/svg}rect") if e.get("class") in {"o", "p"}]
    assert [float(bar.get("width", 0)) for bar in bars] == [260, 130]
    assert "prefers-color-scheme" in ElementTree.tostring(plot, encoding="unicode")


def test_a_page_is_changed_between_its_marks_alone(table: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "peers-width16.json").write_text(json.dumps(RESULTS[0]), encoding="utf-8")
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    arguments = ["--results", str(tmp_path), "--readme", str(page), "--plot", str(plot)]
    with pytest.raises(SystemExit, match=re.escape(f"{page} is not what the results say")):
        table.main([*arguments, "--check"])
    table.main(arguments)
    text = page.read_text(encoding="utf-8")
    assert re.fullmatch(r"before\n<!--.*?-->\n\|.*\|\n\nWidth 16: .*\n\n<!-- peers: end -->\nafter\n", text, re.DOTALL)
    with pytest.raises(SystemExit) as clean:
        table.main([*arguments, "--check"])
    assert clean.value.code == 0


@pytest.mark.parametrize("text", ["no marks", "<!-- peers: end -->\n<!-- peers: begin -->"])
def test_a_page_without_marks_is_refused(table: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit, match=r"the page needs one <!-- peers: begin --> with <!-- peers: end --> after it"):
        table.replace_table(text, "")


def test_no_results_is_an_error(table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table.main(["--results", str(tmp_path)])
    assert "run benchmarks/peers.py first" in capsys.readouterr().err


def test_the_readme_says_what_was_measured(table: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table.BEGIN in text
    results = table.read_results(ROOT / "benchmarks" / "results")
    assert results, "benchmarks/results has no peers-width*.json"
    assert table.replace_table(text, table.make_table(results)) == text
    plot = ROOT / "docs" / "images" / "speed.svg"
    assert plot.read_text(encoding="utf-8") == table.make_plot(results[0])
