"""Neither memory nor the cost of a pixel grows with the volume: the command line on larger and larger planes.

    python benchmarks/memory.py [--sides 4096 16384]
    python benchmarks/memory.py --sparse --sides 4096 16384 65536
    python benchmarks/memory.py --sides 16384 65536 --model tests/golden/artifact_v1/tiny.onnx --write labels

Each run is a process of its own; its peak is what the system counted for it. A plane is a mosaic of 4,096 px, repeated:
the files of its chunks are links to each other, so 4 Gpx take the disk of 16 Mpx. A tiny network makes 4 Gpx a matter
of minutes, and shows what everything around a network costs. A sparse plane holds the mosaic once; the rest is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import zarr
from common import make_mosaic, save

MOSAIC, CHUNK = 4096, 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--tile", help="planned if left out; for the bundled network, 1212")
    parser.add_argument("--model")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--write", nargs="+", default=["labels", "probabilities"])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mosaic = make_mosaic(folder / "mosaic.zarr", MOSAIC, chunk=CHUNK)
        for side in options.sides:
            rows.append(measure(repeat(mosaic, folder / f"{side}.zarr", side, is_sparse=options.sparse), side, options))
            print(rows[-1], file=sys.stderr)
    first, last = rows[0], rows[-1]
    save(
        f"memory-{'sparse' if options.sparse else 'repeated'}-{options.sides[-1]}",
        {
            "what": "peak resident memory and cost of a pixel of `unet-deploy segment` by size of the plane, same tile",
            "command": " ".join(["python benchmarks/memory.py", *sys.argv[1:]]),
            "network": options.model or "bundled",
            "written": options.write,
            "memory_last_to_first": round(last["peak_memory_bytes"] / first["peak_memory_bytes"], 4),
            "rows": rows,
        },
    )


def repeat(mosaic: Path, path: Path, side: int, *, is_sparse: bool) -> Path:
    """Write a plane of (side, side) pixels whose chunks are those of the mosaic, once or over and over; return it."""
    assert side % CHUNK == 0, side
    array = zarr.create_array(str(path), shape=(side, side), chunks=(CHUNK, CHUNK), dtype="uint8", write_data=False)
    assert array.chunks == (CHUNK, CHUNK)
    count = (MOSAIC if is_sparse else side) // CHUNK
    for y in range(count):
        (path / "c" / str(y)).mkdir(parents=True)
        for x in range(count):
            source = mosaic / "c" / str(y % (MOSAIC // CHUNK)) / str(x % (MOSAIC // CHUNK))
            os.link(source, path / "c" / str(y) / str(x))
    return path


def measure(volume: Path, side: int, options: argparse.Namespace) -> dict[str, Any]:
    """Segment the plane in a process of its own, and return what that took."""
    command = [sys.executable, "-m", "unet_deploy", "segment", str(volume), "--json"]
    command += (
        [] if options.model is None else ["--model", str(Path(options.model).absolute()), "--input-range", "0:255"]
    )
    tile = options.tile or (None if options.model else "1212")
    command += ["--tile", tile] if tile else []
    for kind in options.write:
        command += ["--write", kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=volume.parent)
    facts = json.loads(done.stdout)
    seconds = facts["seconds"]
    return {
        "side": side,
        "blocks": facts["plan"]["blocks"],
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "planned_bytes": facts["plan"]["peak_memory_bytes"],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "ns_per_pixel": round(1e9 * (seconds["blocks"] + seconds["pyramid"]) / side**2, 3),
    }


if __name__ == "__main__":
    main()
