"""What everything around the network costs: `segment` against a plain loop of the engine over the same tiles.

    python benchmarks/overhead.py [--side 4096] [--model FILE] [--engine openvino] [--runs 5]

The loop opens the engine and runs the tiles, which were cut, mirrored and normalised beforehand; its outputs are thrown
away. `segment` opens the engine too, reads the Zarr, mirrors, normalises, infers, makes labels and probabilities, and
writes both with pyramid and metadata. Engine and tiles are the same; runs alternate; medians are compared. A first run
of each, which imports packages, does not count.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from common import make_mosaic, save

from unet_deploy.runtime import load_artifact, load_bundled_artifact, open_engine, prepare, segment
from unet_deploy.runtime.expected_costs import expect_costs
from unet_deploy.runtime.normalise import Normaliser
from unet_deploy.runtime.windows import plan_window, spread


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", nargs="+", default=["labels", "probabilities"])
    options = parser.parse_args()
    artifact = load_artifact(options.model) if options.model else load_bundled_artifact()
    constants = artifact.card.normalisation
    normalise = Normaliser(mean=constants.mean, std=constants.std)

    with tempfile.TemporaryDirectory() as folder:
        volume = make_mosaic(Path(folder) / "mosaic.zarr", options.side)
        plan = prepare(volume, model=artifact, costs=expect_costs(artifact, engine=options.engine)).plan
        pixels = np.asarray(zarr.open_array(str(volume), mode="r")[:])
        inputs = []
        for block in plan.blocks():
            y = plan_window(plan.geometry, block.tiles_y, options.side)
            x = plan_window(plan.geometry, block.tiles_x, options.side)
            window = spread(pixels[None, y.source.slice, x.source.slice], y, x)
            inputs += [
                normalise(window[:, ty.read.shifted(-y.window.start).slice, tx.read.shifted(-x.window.start).slice])
                for ty in block.tiles_y
                for tx in block.tiles_x
            ]
        loop_s, segment_s, loop_cpu, segment_cpu, stages = [], [], [], [], []
        for run in range(options.runs + 1):
            start, start_cpu = time.perf_counter(), time.process_time()
            engine = open_engine(artifact, engine=options.engine)
            for tile in inputs:
                engine.infer(tile[None])
            loop_s.append(time.perf_counter() - start)
            loop_cpu.append(time.process_time() - start_cpu)
            engine.close()
            start_cpu = time.process_time()
            output = Path(folder) / f"out{run}.ome.zarr"
            result = segment(volume, model=artifact, output=output, write=options.write, engine=options.engine)
            segment_s.append(result.seconds["total"])
            segment_cpu.append(time.process_time() - start_cpu)
            stages.append(result.seconds)
            shutil.rmtree(output)
            if not run:
                for taken in (loop_s, segment_s, loop_cpu, segment_cpu, stages):
                    taken.clear()
    ratio = statistics.median(s / e for s, e in zip(segment_s, loop_s, strict=True))
    save(
        "-".join(
            (
                f"overhead-width{artifact.card.network.base_width}-{artifact.card.precision}",
                options.engine,
                *options.write,
            )
        ),
        {
            "what": "wall time of segment over a plain loop of the engine on the same tiles, prepared beforehand",
            "command": " ".join(["python benchmarks/overhead.py", *sys.argv[1:]]),
            "side": options.side,
            "engine": options.engine,
            "ratio": round(ratio, 4),
            "cpu_ratio": round(statistics.median(s / e for s, e in zip(segment_cpu, loop_cpu, strict=True)), 4),
            "segment_s": [round(s, 3) for s in segment_s],
            "loop_s": [round(s, 3) for s in loop_s],
            "segment_mpx_per_s": round(options.side**2 / statistics.median(segment_s) / 1e6, 3),
            "loop_mpx_per_s": round(options.side**2 / statistics.median(loop_s) / 1e6, 3),
            "plan": plan.to_object(),
            "stages_s": [{k: round(v, 3) for k, v in s.items()} for s in stages],
        },
    )


if __name__ == "__main__":
    main()
