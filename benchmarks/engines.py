"""Which engine and precision is fastest here: time per tile, through the checks that every run goes through.

    python benchmarks/engines.py [MODEL.onnx ...] [--cores 384 768] [--runs 5] [--threads 0]

Without models, the bundled network. Every model runs on every CPU engine; they take turns, so that a busy machine slows
all alike. Wall and CPU time are medians, relative to the first model on onnxruntime-cpu. The orders in
runtime/engines/choice.py come from this. A network of the paper's width: benchmarks/wide_network.py.
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
WARM_UP, TIMED = 2, 3
Case = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--cores", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    artifacts = [load_artifact(path) for path in options.models] or [load_bundled_artifact()]
    network = artifacts[0].card.network
    reference = artifacts[0].card.precision, REFERENCE
    rows = []
    for core in options.cores:
        side = artifacts[0].card.geometry.tile_side(core)
        batch = np.random.default_rng(0).standard_normal((1, network.in_channels, side, side), np.float32)
        engines: dict[Case, CheckedEngine] = {}
        for artifact in artifacts:
            precision = artifact.card.precision
            for kind in candidates("cpu", precision=precision):
                engines[precision, kind.name] = open_engine(artifact, engine=kind.name, threads=options.threads)
        for engine in engines.values():
            _time(engine, batch, WARM_UP)
        taken: dict[Case, list[tuple[float, float]]] = {case: [] for case in engines}
        for _ in range(options.runs):
            for case, engine in engines.items():
                taken[case].append(_time(engine, batch, TIMED))
        medians = {case: [statistics.median(column) for column in zip(*taken[case], strict=True)] for case in engines}
        for (precision, name), (wall, cpu) in medians.items():
            rows.append(
                {
                    "precision": precision,
                    "engine": name,
                    "versions": engines[precision, name].describe().versions,
                    "tile": side,
                    "seconds": round(wall, 4),
                    "wall_ratio": round(wall / medians[reference][0], 3),
                    "cpu_ratio": round(cpu / medians[reference][1], 3),
                    "times_as_fast": round(medians[reference][0] / wall, 2),
                }
            )
        for engine in engines.values():
            engine.close()
    save(
        f"engines-width{network.base_width}",
        {
            "what": "time per tile by precision and engine, relative to the first model on onnxruntime-cpu",
            "command": "python benchmarks/engines.py " + " ".join(path.name for path in options.models),
            "rows": rows,
        },
    )


def _time(engine: CheckedEngine, batch: np.ndarray, times: int) -> tuple[float, float]:
    """Return wall and CPU seconds of one run of a batch."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        engine.infer(batch)
    return (time.perf_counter() - start) / times, (time.process_time() - start_cpu) / times


if __name__ == "__main__":
    main()
