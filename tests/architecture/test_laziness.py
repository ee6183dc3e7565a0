"""What is heavy is imported when it is used; asserted on ``sys.modules``, since times say little."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "onnxruntime", "dask", "distributed", "zarr"}

IMPORT_RUNTIME = """
import json, sys
import unet_deploy.runtime
print(json.dumps(sorted(sys.modules)))
"""

HELP = """
import contextlib, io, json, sys
from unet_deploy.cli import main
sys.argv = ["unet-deploy", *{arguments!r}]
shown = io.StringIO()
with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
assert code in (0, None), code
assert "unet-deploy" in shown.getvalue(), shown.getvalue()
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(program: str, folder: Path) -> set[str]:
    """Run a program in a new interpreter, away from the checkout, and return the modules it ended with."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_runtime_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = modules_after(IMPORT_RUNTIME, tmp_path)
    assert "unet_deploy.runtime" in loaded
    assert loaded & (HEAVY | {"typer", "rich"}) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["segment", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    loaded = modules_after(HELP.format(arguments=arguments), tmp_path)
    assert "unet_deploy.cli" in loaded
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_what_must_stay_away_is_installed() -> None:
    """Otherwise the tests above pass for the wrong reason."""
    required = HEAVY - {"torch", "onnxruntime"} | {"typer", "rich"}
    assert [name for name in sorted(required) if importlib.util.find_spec(name) is None] == []
