"""Peak memory does not grow with the volume: the command line on 4,096² and on 16,384² with the same tile.

    python benchmarks/memory.py [--sides 4096 16384]

Each run is a process of its own; its peak is what the system counted for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import make_mosaic, save


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--tile", default="1212")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            volume = make_mosaic(Path(folder) / f"{side}.zarr", side)
            command = [sys.executable, "-m", "unet_deploy", "segment", str(volume), "--tile", options.tile, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
            facts = json.loads(done.stdout)
            rows.append(
                {
                    "side": side,
                    "peak_memory_bytes": facts["peak_memory_bytes"],
                    "planned_bytes": facts["plan"]["peak_memory_bytes"],
                    "seconds": round(facts["seconds"]["total"], 1),
                    "mpx_per_s": round(facts["pixels_per_second"] / 1e6, 3),
                }
            )
            print(rows[-1], file=sys.stderr)
    first, last = rows[0]["peak_memory_bytes"], rows[-1]["peak_memory_bytes"]
    save(
        "memory",
        {
            "what": "peak resident memory of `unet-deploy segment` by size of the volume, same tile",
            "command": "python benchmarks/memory.py",
            "ratio_last_to_first": round(last / first, 4),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
