"""Which engine is fastest here: time per tile of each engine, through the checks that every run goes through.

    python benchmarks/engines.py [--model FILE] [--cores 384 768] [--runs 5] [--threads 0]

Engines take turns, so that a busy machine slows all alike; wall and CPU time are medians, relative to onnxruntime-cpu.
The orders in runtime/engines/choice.py come from this.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from common import save

from unet_deploy.runtime import CheckedEngine, load_artifact, load_bundled_artifact, open_engine
from unet_deploy.runtime.engines import candidates

REFERENCE = "onnxruntime-cpu"
WARM_UP, TIMED = 3, 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cores", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    artifact = load_artifact(options.model) if options.model else load_bundled_artifact()
    network, precision = artifact.card.network, artifact.card.precision
    rows = []
    for core in options.cores:
        side = artifact.card.geometry.tile_side(core)
        batch = np.random.default_rng(0).standard_normal((1, network.in_channels, side, side), np.float32)
        names = [kind.name for kind in candidates("cpu", precision=precision)]
        engines = {name: open_engine(artifact, engine=name, threads=options.threads) for name in names}
        for engine in engines.values():
            _time(engine, batch, WARM_UP)
        taken = {name: [] for name in names}
        for _ in range(options.runs):
            for name, engine in engines.items():
                taken[name].append(_time(engine, batch, TIMED))
        medians = {name: [statistics.median(column) for column in zip(*taken[name], strict=True)] for name in names}
        for name, (wall, cpu) in medians.items():
            versions = engines[name].describe().versions
            rows.append(
                {
                    "engine": name,
                    "versions": versions,
                    "tile": side,
                    "seconds": round(wall, 4),
                    "wall_ratio": round(wall / medians[REFERENCE][0], 3),
                    "cpu_ratio": round(cpu / medians[REFERENCE][1], 3),
                }
            )
        for engine in engines.values():
            engine.close()
    save(
        f"engines-width{network.base_width}-{precision}",
        {"what": "time per tile by engine", "command": "python benchmarks/engines.py", "rows": rows},
    )


def _time(engine: CheckedEngine, batch: np.ndarray, times: int) -> tuple[float, float]:
    """Return wall and CPU seconds of one run of a batch."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        engine.infer(batch)
    return (time.perf_counter() - start) / times, (time.process_time() - start_cpu) / times


if __name__ == "__main__":
    main()
