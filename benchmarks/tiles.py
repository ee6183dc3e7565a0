"""Which tile is fastest here, and what it holds: time per output pixel and memory by core, through the engine alone.

    python benchmarks/tiles.py [--model FILE] [--engines openvino onnxruntime-cpu] [--cores 384 512x2048] [--runs 3]

Each engine runs its tiles in a process of its own (`unet_deploy.runtime.measuring`), from the smallest to the largest,
so that the memory of each is its own; the engines take turns, run by run. Times are medians over the runs. The rules of
thumb in runtime/engine_costs.py come from this.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from common import save

from unet_deploy.runtime import load_artifact, load_bundled_artifact
from unet_deploy.runtime.cost import flops_per_pixel, tile_flops, tile_memory_bytes, weights_bytes
from unet_deploy.runtime.engine_costs import TileSample
from unet_deploy.runtime.measuring import measure_engine, order_tiles

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime-cpu"])
    parser.add_argument("--cores", nargs="+", default=["384", "768", "1024", "512x2048", "1024x2048", "1536", "2048"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    artifact = load_artifact(options.model) if options.model else load_bundled_artifact()
    network, geometry = artifact.card.network, artifact.card.geometry
    cores = [tuple(map(int, core.split("x"))) for core in options.cores]
    tiles = [(geometry.tile_side(core[0]), geometry.tile_side(core[-1])) for core in cores]
    found: dict[tuple[str, int, int], list[TileSample]] = {}
    for _ in range(options.runs):
        for engine in options.engines:
            costs = measure_engine(
                artifact, engine=engine, tiles=order_tiles(artifact, tiles), seconds_limit=600, patience_s=600
            )
            for sample in costs.samples:
                found.setdefault((engine, sample.tile_y, sample.tile_x), []).append(sample)
    rows = []
    for (engine, y, x), samples in found.items():
        kept = geometry.core_side(y) * geometry.core_side(x)
        seconds = statistics.median(sample.seconds for sample in samples)
        memory = max(sample.memory_bytes for sample in samples)
        map_bytes = tile_memory_bytes(network, y, x, 1, maps_held=1)
        rows.append(
            {
                "engine": engine,
                "core": [geometry.core_side(y), geometry.core_side(x)],
                "tile": [y, x],
                "mpx_per_s": round(kept / seconds / 1e6, 3),
                "gflop_per_s": round(tile_flops(network, y, x) / seconds / 1e9, 1),
                "flops_over_minimum": round(tile_flops(network, y, x) / kept / flops_per_pixel(network), 3),
                "memory_mib": memory // MIB,
                "feature_maps_held": round((memory - 2 * weights_bytes(network)) / map_bytes, 2),
            }
        )
    save(
        f"tiles-width{network.base_width}-{artifact.card.precision}",
        {
            "what": "time per output pixel and memory by core",
            "command": " ".join(["python benchmarks/tiles.py", *sys.argv[1:]]),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
