"""Which tile is fastest here: time per output pixel by core, through the engine alone.

    python benchmarks/tiles.py [--model FILE] [--cores 256 384 512 768 1024 1536] [--runs 3]

Tiles of each size take turns; wall and CPU time per pixel are medians, relative to the core of 384 (the paper's 572).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from common import save

from unet_deploy.runtime import load_artifact, load_bundled_artifact, open_engine
from unet_deploy.runtime.cost import flops_per_pixel, tile_flops, tile_memory_bytes

REFERENCE = 384
WARM_UP, TIMED = 3, 3
"""The second run still allocates: onnxruntime plans its memory after the first."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cores", type=int, nargs="+", default=[256, REFERENCE, 512, 768, 1024, 1536])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    artifact = load_artifact(options.model) if options.model else load_bundled_artifact()
    network, geometry = artifact.card.network, artifact.card.geometry
    rng = np.random.default_rng(0)
    wall: dict[int, list[float]] = {core: [] for core in options.cores}
    cpu: dict[int, list[float]] = {core: [] for core in options.cores}
    for run in range(options.runs + 1):
        for core in options.cores:  # a session of its own each: an arena keeps the shape it grew for
            side = geometry.tile_side(core)
            batch = rng.standard_normal((1, network.in_channels, side, side), np.float32)
            engine = open_engine(artifact, device="cpu")
            for _ in range(WARM_UP):
                engine.infer(batch)
            start, start_cpu = time.perf_counter(), time.process_time()
            for _ in range(TIMED):
                engine.infer(batch)
            if run:  # the first turn warms the machine
                wall[core].append((time.perf_counter() - start) / TIMED / core**2)
                cpu[core].append((time.process_time() - start_cpu) / TIMED / core**2)
            engine.close()
    base_wall, base_cpu = statistics.median(wall[REFERENCE]), statistics.median(cpu[REFERENCE])
    base_flops = tile_flops(network, *(geometry.tile_side(REFERENCE),) * 2) / REFERENCE**2
    rows = [
        {
            "core": core,
            "tile": geometry.tile_side(core),
            "wall_ratio": round(statistics.median(wall[core]) / base_wall, 3),
            "cpu_ratio": round(statistics.median(cpu[core]) / base_cpu, 3),
            "flops_ratio": round(tile_flops(network, *(geometry.tile_side(core),) * 2) / core**2 / base_flops, 3),
            "flops_over_minimum": round(
                tile_flops(network, *(geometry.tile_side(core),) * 2) / core**2 / flops_per_pixel(network), 3
            ),
            "mpx_per_s": round(1e-6 / statistics.median(wall[core]), 3),
            "planned_mib": tile_memory_bytes(network, *(geometry.tile_side(core),) * 2, 1) // 2**20,
        }
        for core in options.cores
    ]
    save(
        f"tiles-width{network.base_width}",
        {"what": "time per output pixel by core", "command": "python benchmarks/tiles.py", "rows": rows},
    )


if __name__ == "__main__":
    main()
