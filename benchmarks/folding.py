"""What folding up-convolutions is worth in OpenVINO: the artifact's graph and the folded one, taking turns.

    python benchmarks/folding.py [--model FILE] [--cores 512 1024] [--runs 9]

Both are compiled for one tile; each runs once before it counts. Times are medians; the difference is of logits.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from common import save

from unet_deploy.runtime import load_artifact, load_bundled_artifact
from unet_deploy.runtime.engines.openvino import import_openvino
from unet_deploy.runtime.engines.openvino_graph import fold_up_convolutions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cores", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    artifact = load_artifact(options.model) if options.model else load_bundled_artifact()
    network, geometry = artifact.card.network, artifact.card.geometry
    core = import_openvino().Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False})
    rows, folding_s = [], []
    for side in options.cores:
        tile = geometry.tile_side(side)
        batch = np.random.default_rng(0).standard_normal((1, network.in_channels, tile, tile), np.float32)
        requests, logits = {}, {}
        for name in ("folded", "as it is"):
            model = core.read_model(io.BytesIO(artifact.data))
            if name == "folded":
                start = time.perf_counter()
                assert fold_up_convolutions(model), "nothing was folded"
                folding_s.append(time.perf_counter() - start)
            model.reshape(list(batch.shape))
            requests[name] = core.compile_model(model, "CPU").create_infer_request()
            logits[name] = requests[name].infer({0: batch})[0]
        taken: dict[str, list[float]] = {name: [] for name in requests}
        for _ in range(options.runs):
            for name, request in requests.items():
                start = time.perf_counter()
                request.infer({0: batch}, share_inputs=True)
                taken[name].append(time.perf_counter() - start)
        seconds = {name: statistics.median(times) for name, times in taken.items()}
        rows.append(
            {
                "core": side,
                "mpx_per_s": {name: round(side**2 / s / 1e6, 3) for name, s in seconds.items()},
                "times_as_fast": round(seconds["as it is"] / seconds["folded"], 3),
                "largest_difference": float(np.abs(logits["folded"] - logits["as it is"]).max()),
                "largest_logit": float(np.abs(logits["as it is"]).max()),
            }
        )
    save(
        f"folding-width{network.base_width}",
        {
            "data": "normal noise",
            "what": "the network in OpenVINO with its up-convolutions folded, against the artifact's graph, in turn",
            "command": " ".join(["python benchmarks/folding.py", *sys.argv[1:]]),
            "folding_s": [round(s, 3) for s in folding_s],
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
