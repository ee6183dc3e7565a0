"""``unet-deploy doctor``: what it shows, as a person and a program read it, and what it never shows."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Outcome
from unet_deploy import __version__
from unet_deploy.cli.doctor import describe_engine
from unet_deploy.runtime.kept_plans import NOT_TRIED
from unet_deploy.runtime.survey import EngineStatus

Cli = Callable[..., Outcome]
WITHOUT_ENGINES = """
import sys
sys.modules["onnxruntime"] = sys.modules["openvino"] = None
from unet_deploy.cli.app import run
sys.exit(run(["doctor", *sys.argv[1:]]))
"""


@pytest.fixture(autouse=True)
def _an_engine() -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")


def test_what_a_person_reads(cli: Cli) -> None:
    outcome = cli("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    shown = dict(re.split(r" {2,}", line, maxsplit=1) for line in outcome.out.splitlines())
    assert shown["unet-deploy"] == __version__
    assert shown["numpy"] == np.__version__
    assert platform.python_version() in shown["python"]
    assert re.fullmatch(
        r"works on cpu, opened and replayed in [\d.]+ s, difference \S+ \(at most \S+\)", shown["onnxruntime-cpu"]
    )
    assert "logical cores" in shown["cpu"]
    assert "free of" in shown["disk"]
    assert "zstd" in shown["codecs"]
    assert shown["verdict"].startswith("segmenting works, on onnxruntime-cpu")
    assert {"python", "platform", "memory", "gpu", "torch", "tried on", "tensorrt-rtx"} <= set(shown)


def test_what_a_program_reads(cli: Cli) -> None:
    outcome = cli("doctor", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    facts = json.loads(outcome.out)
    assert (facts["unet_deploy"], facts["works"]) == (__version__, True)
    engine = next(engine for engine in facts["engines"] if engine["engine"] == "onnxruntime-cpu")
    assert (engine["works"], engine["reason"], engine["device"]) == (True, None, "cpu")
    assert engine["difference"] <= engine["limit"]


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_it_names_no_one(flags: tuple[str, ...], cli: Cli) -> None:
    shown = cli("doctor", *flags).out
    for private in (str(Path.home()), sys.prefix, str(Path.cwd()), tempfile.gettempdir()):
        assert re.search(rf"(?<![\w.-]){re.escape(private)}(?![\w-])", shown) is None or len(private) == 1
    host = platform.node()
    assert len(host) < 3 or host == "localhost" or re.search(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", shown) is None


def test_where_no_engine_can_be_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ENGINES],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.returncode == 5
    assert re.search(r"^verdict +nothing can segment here", done.stdout, re.MULTILINE)
    assert "error[device]: no engine works on this machine" in done.stderr
    assert "onnxruntime-cpu: running a model needs the package 'onnxruntime', which is not installed" in done.stderr
    assert done.stderr.splitlines()[-1] == "  fix: pip install 'unet-deploy[cpu]'"
    assert "Traceback" not in done.stderr


def install(folder: Path, name: str, version: str) -> None:
    """Leave what pip leaves of a package for others to find."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_two_onnxruntimes_at_once(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Found as pip left them, in a real process, whichever of the two is the one that Python imports."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        install(tmp_path / "packages", name, "1.99.0")
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", "doctor", *flags],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "packages")},
    )
    assert done.returncode == 0, done.stderr  # it works, today
    headline = "onnxruntime 1.99.0 and onnxruntime-gpu 1.99.0 are installed at once"
    fix = ["pip uninstall -y onnxruntime onnxruntime-gpu", "pip install 'unet-deploy[gpu]'"]
    if flags:
        (problem,) = json.loads(done.stdout)["problems"]
        assert (problem["headline"], problem["fix"]) == (headline, fix)
        return
    assert re.search(rf"^error +{headline}: the packages share one folder", done.stdout, re.MULTILINE)
    assert re.findall(r"^fix +(.+)$", done.stdout, re.MULTILINE) == fix
    assert "; 1 error(s) above to mend" in done.stdout


def test_the_plan_cache_is_shown(tmp_path: Path) -> None:
    plans = tmp_path / "home" / ("AppData/Local" if sys.platform == "win32" else ".local/share") / "unet-deploy/plans"
    (plans / "one").mkdir(parents=True)
    (plans / "one" / "plan.engine").write_bytes(bytes(3000))
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", "doctor"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        check=False,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"^plan cache +(.+)$", done.stdout, re.MULTILINE)
    assert line.startswith("~")
    assert line.endswith("plans: 1 plan(s), 3.0 kB")


def test_an_engine_that_was_not_tried_is_not_called_broken() -> None:
    status = EngineStatus(name="tensorrt", works=False, reason=f"{NOT_TRIED}: its plan is yet to be built", fix="do so")
    assert describe_engine(status) == f"{NOT_TRIED}: its plan is yet to be built; to try it: do so"
    broken = EngineStatus(name="tensorrt", works=False, reason="libnvinfer.so.11 is missing", fix="pip install it")
    assert describe_engine(broken) == "no: libnvinfer.so.11 is missing; fix: pip install it"
