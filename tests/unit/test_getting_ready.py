"""What is prepared beside other things before a run's first block: the engine for its tiles, and Dask's packages."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_deploy.runtime.artifact import load_artifact
from unet_deploy.runtime.dask_client import imported_beside
from unet_deploy.runtime.engines import CheckedEngine

TINY = Path(__file__).resolve().parents[1] / "golden" / "artifact_v1" / "tiny.onnx"


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the extra 'openvino' is not installed")
def test_openvino_computes_the_same_whether_or_not_the_shape_was_foretold() -> None:
    from unet_deploy.runtime.engines.openvino import OpenvinoEngine

    artifact = load_artifact(TINY)
    geometry = artifact.card.geometry
    side = geometry.tile_side(4 * geometry.divisor)
    batch = np.random.default_rng(0).standard_normal((1, artifact.card.network.in_channels, side, side), np.float32)
    logits = []
    for shape in (None, batch.shape):
        inner = OpenvinoEngine(artifact.data, precision=artifact.card.precision, threads=1, batch_shape=shape)
        with closing(CheckedEngine(inner, artifact.card).open()) as engine:
            logits.append(engine.infer(batch))
            assert inner.shapes[-1] == batch.shape
    np.testing.assert_array_equal(*logits)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the extra 'openvino' is not installed")
@pytest.mark.parametrize("is_broken", [False, True])
def test_openvino_compiles_the_shape_foretold_while_it_is_checked(
    monkeypatch: pytest.MonkeyPatch, *, is_broken: bool
) -> None:
    """In a thread, once; where that fails, the first batch of the shape compiles it and says what fails then."""
    from unet_deploy.runtime.engines import openvino

    compiled: list[tuple[tuple[int, ...], str]] = []
    compile_as_ever = openvino._compile

    def compile_noted(core: Any, model: Any, shape: tuple[int, ...]) -> Any:
        thread = threading.current_thread().name.split("_")[0]
        compiled.append((tuple(shape), thread))
        if is_broken and thread == "compile":
            raise MemoryError
        return compile_as_ever(core, model, shape)

    monkeypatch.setattr(openvino, "_compile", compile_noted)
    artifact = load_artifact(TINY)
    side = artifact.card.geometry.tile_side(4 * artifact.card.geometry.divisor)
    batch = np.zeros((1, artifact.card.network.in_channels, side, side), np.float32)
    inner = openvino.OpenvinoEngine(artifact.data, precision="fp32", threads=1, batch_shape=batch.shape)
    with closing(CheckedEngine(inner, artifact.card).open()) as engine:
        for _ in range(2):
            engine.infer(batch)
    again = [(batch.shape, "MainThread")] if is_broken else []
    assert [one for one in compiled if one[0] == batch.shape] == [(batch.shape, "compile"), *again]
    assert inner.shapes == ()


def test_dask_is_there_when_the_import_beside_ends(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from unet_deploy.runtime.dask_client import imported_beside\n"
        "assert 'distributed' not in sys.modules\n"
        "with imported_beside():\n"
        "    pass\n"
        "assert hasattr(sys.modules['distributed'], 'Client')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)


def test_what_is_missing_is_said_by_whoever_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with imported_beside():
        pass


def test_a_broken_package_is_said_by_them_too(tmp_path: Path) -> None:
    """And not by a traceback of a thread besides."""
    (tmp_path / "distributed.py").write_text("raise RuntimeError('half installed')\n")
    program = (
        "import sys\n"
        "sys.path.insert(0, '.')\n"
        "from unet_deploy.runtime.dask_client import imported_beside\n"
        "with imported_beside():\n"
        "    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=tmp_path, timeout=120, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
