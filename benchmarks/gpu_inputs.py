"""What `gpu.py` measures with: the bundled network at other widths and in each precision, and a stack of mosaics."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import ROOT, make_mosaic, read_slices

from unet_deploy.runtime import Artifact, load_artifact, load_bundled_artifact


class Networks:
    """The bundled network at a width, in each precision when it is asked for: int8 takes minutes to be calibrated."""

    def __init__(self, folder: Path, width: int) -> None:
        self.checkpoint = folder / f"width{width}.pt"
        script = [
            sys.executable,
            ROOT / "benchmarks" / "wide_network.py",
            self.checkpoint,
            "--factor",
            str(width // 16),
        ]
        subprocess.run(script, check=True, stdout=sys.stderr)
        self._images = folder / "calibration"
        self._made: dict[str, Artifact] = {}

    def give(self, precision: Any, engine: str = "") -> Artifact:
        """Return the artifact of a precision; of int8 for TensorRT in the form that it wants, of the same data."""
        from unet_deploy.exporters.calibration import CalibrationSource, read_tiles
        from unet_deploy.exporters.export import export_precisions
        from unet_deploy.exporters.tensorrt import make_int8_graph

        is_own = precision == "int8" and engine.startswith("tensorrt")
        name = f"{precision}{' of tensorrt' if is_own else ''}"
        if name not in self._made:
            data = None if precision == "fp32" else CalibrationSource(path=self._calibration())
            if is_own:
                assert data is not None
                parent = self.give("fp32")
                graph = make_int8_graph(parent, read_tiles(data, parent), progress=_say)
                self._made[name] = graph.artifact
            else:
                output = self.checkpoint.with_suffix(f".{precision}.onnx")
                (report,) = export_precisions(self.checkpoint, {precision: output}, calibrate=data, progress=_say)
                self._made[name] = load_artifact(report.path)
        return self._made[name]

    def _calibration(self) -> Path:
        if not self._images.exists():
            from skimage.io import imsave

            self._images.mkdir()
            for index, image in enumerate(read_slices()[:8]):
                imsave(self._images / f"{index}.png", np.asarray(image), check_contrast=False)
        return self._images


class OneModel:
    """A model that was given, in place of networks of each width."""

    checkpoint = None

    def __init__(self, name: str) -> None:
        self._artifact = load_bundled_artifact() if name == "bundled" else load_artifact(name)
        self.precision = self._artifact.card.precision

    def give(self, precision: str, engine: str = "") -> Artifact:
        """Return it."""
        assert precision in ("fp32", self.precision), (precision, engine)
        return self._artifact


def _say(words: str) -> None:
    print(f"  {words}", file=sys.stderr, flush=True)


def make_stack(path: Path, side: int, planes: int) -> Path:
    """Write a stack of so many planes, each the same mosaic; its chunks are copied, which takes no time."""
    chunk = min(1024, side)
    mosaic = make_mosaic(path.with_name("mosaic.zarr"), side, chunk=chunk)
    shape, chunks = (planes, side, side), (1, chunk, chunk)
    zarr.create_array(str(path), shape=shape, chunks=chunks, dtype="uint8", dimension_names=["z", "y", "x"])
    for z in range(planes):
        shutil.copytree(mosaic / "c", path / "c" / str(z))
    shutil.rmtree(mosaic)
    return path
