"""What a pixel costs, from small planes to large ones: whole runs of the command line, in alternation.

    python benchmarks/flat.py [--sides 4096 16384 65536] [--rounds 3]
    python benchmarks/flat.py --model bundled --sides 4096 16384
    python benchmarks/flat.py --model membrane.int8.onnx --tile 1212 --rounds 2
    python benchmarks/flat.py --sides 2048 4096 --rounds 1

Planes are those of `benchmarks/memory.py`: a mosaic, repeated by links, so 4 Gpx take the disk of 16 Mpx. The network
is a tiny one, which leaves what everything around a network costs, and makes 4 Gpx a matter of minutes. The bundled one
in int8 comes of ``python benchmarks/wide_network.py membrane.pt --factor 1`` and ``unet-deploy export membrane.pt
--precision int8 --calibrate IMAGES -o membrane.int8.onnx``.

1. Each round runs every side once; smaller ones several times, since they are over before a clock has settled. It also
   runs a plane of one chunk, whose time is that of start and end: what each run costs, however large.
2. A pixel's cost is what a run takes beyond that, over its pixels beyond that: wall time and CPU time of the process.
   Every run also looks at grey values, 67 million at most: the smallest planes pay for all of theirs.
3. The run's own clock gives what blocks and pyramid take, without that.
4. Medians are compared. *Flat* is that of each side over that of the first.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, make_mosaic, save, touch_memory
from memory import CHUNK, MOSAIC, measure, repeat
from startup import children_cpu_s

TINY = ROOT / "tests" / "golden" / "artifact_v1" / "tiny.onnx"
ROUND_PIXELS = 4 * MOSAIC**2
"""Sides of fewer are run so often in a round that they come to about as many, """
MOST_OFTEN = 4
"""and at most so often."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=str(TINY), help="An ONNX file, or `bundled`.")
    parser.add_argument("--tile", help="Planned if left out; for the bundled network, 1212.")
    parser.add_argument("--write", nargs="+", default=["labels"])
    options = parser.parse_args()
    name = options.model if options.model == "bundled" else Path(options.model).stem
    options.model = None if options.model == "bundled" else options.model
    taken: dict[int, list[dict[str, float]]] = {side: [] for side in (CHUNK, *options.sides)}
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        mosaic = make_mosaic(folder / "mosaic.zarr", MOSAIC, chunk=CHUNK)
        planes = {side: repeat(mosaic, folder / f"{side}.zarr", side, is_sparse=False) for side in taken}
        for _ in range(options.rounds):
            for side, plane in planes.items():
                for _ in range(min(max(ROUND_PIXELS // side**2, 1), MOST_OFTEN)):
                    taken[side].append(run(plane, side, options))
                    print(side, taken[side][-1], file=sys.stderr)
    fixed = {key: statistics.median(one[key] for one in taken[CHUNK]) for key in ("wall_s", "cpu_s")}
    rows = [summarise(side, taken[side], fixed) for side in options.sides]
    save(
        f"flat-{name}-{options.sides[-1]}",
        {
            "what": "ns a pixel of `unet-deploy segment` beyond start and end, by side of the plane; medians",
            "command": " ".join(["python benchmarks/flat.py", *sys.argv[1:]]),
            "network": name,
            "written": options.write,
            "rounds": options.rounds,
            "start_and_end": {key: round(value, 3) for key, value in fixed.items()},
            "flat": {
                key: {str(row["side"]): round(row[key] / rows[0][key], 3) for row in rows}
                for key in ("wall_ns_per_pixel", "cpu_ns_per_pixel", "stages_ns_per_pixel")
            },
            "rows": rows,
        },
    )


def run(plane: Path, side: int, options: argparse.Namespace) -> dict[str, float]:
    """Segment a plane in a process of its own, and delete the result; return what that took."""
    touch_memory()
    before, began = children_cpu_s(), time.perf_counter()
    row = measure(plane, side, options)
    took = {"wall_s": time.perf_counter() - began, "cpu_s": children_cpu_s() - before}
    shutil.rmtree(plane.with_name(f"{plane.stem}_segmentation.ome.zarr"))
    return {**took, "stages_ns_per_pixel": row["ns_per_pixel"], "blocks": row["blocks"]}


def summarise(side: int, runs: list[dict[str, float]], fixed: dict[str, float]) -> dict[str, Any]:
    """Return medians of what a pixel of a side costs."""
    pixels = side**2 - CHUNK**2
    medians = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    return {
        "side": side,
        "runs": len(runs),
        "blocks": int(medians["blocks"]),
        "wall_s": round(medians["wall_s"], 3),
        "cpu_s": round(medians["cpu_s"], 3),
        "wall_ns_per_pixel": round(1e9 * (medians["wall_s"] - fixed["wall_s"]) / pixels, 3),
        "cpu_ns_per_pixel": round(1e9 * (medians["cpu_s"] - fixed["cpu_s"]) / pixels, 3),
        "stages_ns_per_pixel": round(medians["stages_ns_per_pixel"], 3),
    }


if __name__ == "__main__":
    main()
