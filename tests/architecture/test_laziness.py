"""What is heavy is imported when it is used; asserted on ``sys.modules``, since times say little."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unet_deploy.cli import GARBAGE_AFTER
from unet_deploy.cli.app import VERBS

HEAVY = {"torch", "onnxruntime", "dask", "distributed", "zarr"}

IMPORT_RUNTIME = """
import json, sys
import unet_deploy.runtime
print(json.dumps(sorted(sys.modules)))
"""

RUN = """
import json, sys
import numpy as np
import zarr
from unet_deploy.runtime import segment
zarr.create_array("v.zarr", data=np.zeros((64, 64), np.uint8))
segment("v.zarr", engine="onnxruntime-cpu")
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


BESIDE_TYPER = {"typer", "annotated_doc", "shellingham"}
"""What a typer program loads to show its help, and typer's floor with it."""
IN_THE_INTERPRETER = {"__main__", "_distutils_hack", "_virtualenv", "sitecustomize", "usercustomize"}


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


def foreign(loaded: set[str]) -> set[str]:
    """Return the packages among modules that are neither Python's, nor ours, nor loaded by the interpreter itself."""
    packages = {name.partition(".")[0] for name in loaded}
    packages = {name for name in packages if not name.startswith("__editable__")}
    return packages - sys.stdlib_module_names - IN_THE_INTERPRETER - {"unet_deploy"}


def test_the_runtime_for_embedding_is_itself_alone(tmp_path: Path) -> None:
    loaded = modules_after(IMPORT_RUNTIME, tmp_path)
    assert foreign(loaded) == set()
    assert {name for name in loaded if name.startswith("unet_deploy")} == {"unet_deploy", "unet_deploy.runtime"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_typer_and_no_verb(arguments: list[str], tmp_path: Path) -> None:
    loaded = modules_after(HELP.format(arguments=arguments), tmp_path)
    assert foreign(loaded) <= BESIDE_TYPER
    ours = {name for name in loaded if name.startswith("unet_deploy")}
    assert ours == {"unet_deploy", "unet_deploy.cli", "unet_deploy.cli.app", "unet_deploy.errors"}


def test_help_of_a_verb_loads_no_other(tmp_path: Path) -> None:
    loaded = modules_after(HELP.format(arguments=["segment", "--help"]), tmp_path)
    verbs = {name.rpartition(".")[2] for name in loaded if name.startswith("unet_deploy.cli.")} & VERBS.keys()
    assert verbs == {"segment"}


def test_the_program_does_not_look_for_garbage_in_what_it_imported(tmp_path: Path) -> None:
    """To do so while importing and once more at the end took a fifth of a short run."""
    program = HELP.format(arguments=["--version"]) + "import gc\nprint(gc.get_freeze_count(), gc.get_threshold()[0])\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    frozen, threshold = done.stdout.split("\n")[-2].split()
    assert int(frozen) > 1000
    assert int(threshold) == GARBAGE_AFTER


def test_a_run_imports_nothing_that_it_has_no_need_of(tmp_path: Path) -> None:
    """What plots, scores, trains or reads TIFF takes longer to import than a small volume takes to segment."""
    loaded = modules_after(RUN, tmp_path)
    assert loaded >= {"zarr", "onnx", "distributed", "onnxruntime"}
    packages = {name.partition(".")[0] for name in loaded}
    assert (
        packages & {"torch", "scipy", "skimage", "matplotlib", "pandas", "tifffile", "rich", "typer", "bokeh"} == set()
    )
    assert {"dask.array", "dask.dataframe", "unet_deploy.training", "unet_deploy.exporters"} & loaded == set()


def test_what_must_stay_away_is_installed() -> None:
    """Otherwise the tests above pass for the wrong reason."""
    required = HEAVY - {"torch", "onnxruntime"} | {"typer", "rich"}
    assert [name for name in sorted(required) if importlib.util.find_spec(name) is None] == []
