"""What the benchmarks share: a mosaic of real slices as a volume, and results as JSON with the machine in them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_deploy.runtime.survey import installed_versions

ROOT = Path(__file__).resolve().parent.parent
ISBI_TEST = ROOT.parent / "shared" / "data" / "isbi2012" / "test"


def make_mosaic(path: Path, side: int, *, chunk: int = 1024) -> Path:
    """Write a (side, side) uint8 Zarr of ISBI 2012 test slices, mirrored against each other; return its path.

    Where the slices are not at hand, the procedural sample takes their place and the result says so.
    """
    tiles = [np.asarray(tile) for tile in read_slices()]
    array = zarr.create_array(str(path), shape=(side, side), chunks=(chunk, chunk), dtype="uint8")
    step = tiles[0].shape[0]
    for y in range(0, side, step):
        row = [tiles[(y // step * 7 + x // step) % len(tiles)] for x in range(0, side, step)]
        flipped = [t[:: -1 if (y // step) % 2 else 1, :: -1 if i % 2 else 1] for i, t in enumerate(row)]
        array[y : y + step] = np.concatenate(flipped, axis=1)[: side - y, :side]
    return path


def read_slices() -> list[Any]:
    """Return the ISBI test slices, or procedural ones of the same size."""
    if ISBI_TEST.is_dir():
        from skimage.io import imread

        return [imread(file) for file in sorted(ISBI_TEST.glob("*.png"))]
    from unet_deploy.sample import em_like_volume

    return list(em_like_volume(shape=(8, 512, 512)))


def describe_machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    names = ("unet-deploy", "onnxruntime", "openvino", "zarr", "dask", "numpy")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": installed_versions(names),
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Print a result and write it to benchmarks/results; one that does not name its data is of `read_slices`."""
    slices = "ISBI 2012 test slices" if ISBI_TEST.is_dir() else "procedural sample"
    result = {"data": slices, **result}
    for key in {"command", "network"} & result.keys():  # folders are this machine's own
        result[key] = " ".join(Path(word).name if Path(word).is_absolute() else word for word in result[key].split(" "))
    text = json.dumps({**result, "machine": describe_machine()}, indent=2)
    print(text)
    (ROOT / "benchmarks" / "results" / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def touch_memory(n_bytes: int = 2 * 2**30) -> None:
    """Let another process take as much memory, and end: what is measured next then takes memory as any other does.

    A virtual machine may give back to its host what is free for two seconds (free page reporting). To take such a page
    again was measured to cost seven times as much as one that was in use just before: 3.4 s a gigabyte.
    """
    subprocess.run([sys.executable, "-c", f"b'1' * {n_bytes}"], check=True)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or sys.platform
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
