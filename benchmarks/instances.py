"""Objects of a gigapixel plane are numbered within the memory of a small one's: 8,192² against 32,768².

    python benchmarks/instances.py [--sides 8192 32768]

The labels are drawn and written as a finished run leaves them, without a network: a disc in each cell of 64², and a
line between all rows of cells, which goes through every block of its row. So the number of objects is known. Each
numbering is a process of its own; its peak is what the system counted for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from unet_deploy.card import ClassInfo
from unet_deploy.cli._report import peak_memory_bytes
from unet_deploy.geometry import Interval
from unet_deploy.runtime.instances import InstanceRule, number_instances
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.output import create_output, write_block
from unet_deploy.runtime.plan import Extents, WriteGrid
from unet_deploy.runtime.scheduling import connect

CELL, RADIUS, BLOCK = 64, 12, 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--number", metavar="STORE", help="what a process of its own does with one of them")
    options = parser.parse_args()
    assert all(side % BLOCK == 0 for side in options.sides), options.sides
    if options.number:
        print(json.dumps(number(Path(options.number), options.sides[0])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            store = Path(folder) / f"{side}.zarr"
            write_labels(store, side)
            command = [sys.executable, __file__, "--number", str(store), "--sides", str(side)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], file=sys.stderr)
    first, last = rows[0], rows[-1]
    save(
        "instances",
        {
            "data": "drawn",
            "what": "peak resident memory and seconds of numbering the objects of a plane, by its size",
            "command": "python benchmarks/instances.py",
            "ratio_last_to_first": round(last["peak_memory_bytes"] / first["peak_memory_bytes"], 4),
            "ratio_of_objects": round(last["objects"] / first["objects"], 4),
            "rows": rows,
        },
    )


def spec_of(store: Path, side: int) -> OutputSpec:
    """Return the output of a plane: chunks of 512², blocks as a plan would choose."""
    return OutputSpec(
        path=str(store),
        zarr_format=3,
        ome_version="0.5",
        kinds=("labels",),
        name="drawn",
        axes="yx",
        extents=Extents(t=1, z=1, y=side, x=side),
        grid=WriteGrid(chunk=(1, 512, 512)),
        block=(1, BLOCK, BLOCK),
        classes=tuple(ClassInfo(name=name, colour="#000000") for name in ("background", "disc", "line")),
        scale=(1.0, 1.0),
        translation=(0.0, 0.0),
        units=(None, None),
    )


def write_labels(store: Path, side: int) -> None:
    """Write the drawn labels; every block is the same."""
    spec = spec_of(store, side)
    y, x = np.ogrid[:BLOCK, :BLOCK]
    is_disc = (y % CELL - CELL // 2) ** 2 + (x % CELL - CELL // 2) ** 2 < RADIUS**2
    labels = np.where(y % CELL == 0, 2, is_disc).astype(np.uint8)[None]
    create_output(spec, fingerprint={}, provenance={}, overwrite=False).close()
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            place = {"y": Interval(top, top + BLOCK), "x": Interval(left, left + BLOCK)}
            write_block(spec, t=0, z=Interval(0, 1), **place, labels=labels, probabilities=None)


def number(store: Path, side: int) -> dict[str, Any]:
    """Number the objects of a store, and say what that took."""
    spec = spec_of(store, side)
    start = time.perf_counter()
    with connect(None) as client:
        result = number_instances(spec, InstanceRule(classes=(1, 2)), client)
    seconds = time.perf_counter() - start
    cells = side // CELL
    assert result.by_class == {"disc": cells**2, "line": cells}, result
    return {
        "side": side,
        "objects": result.count,
        "peak_memory_bytes": peak_memory_bytes(),
        "seconds": round(seconds, 1),
        "mpx_per_s": round(side**2 / seconds / 1e6, 1),
    }


if __name__ == "__main__":
    main()
