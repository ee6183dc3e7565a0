"""Every engine of a GPU against the CPU: the same results, and how fast. One command for a machine with an NVIDIA GPU.

    python benchmarks/gpu.py [--device cuda] [--width 16 64] [--cores 768 1792] [--batches 1 4] [--side 8192]

1. Makes the bundled network at each width in fp32, fp16 and int8 (benchmarks/wide_network.py, with torch).
2. For every engine, precision and tile: opens it (which replays the test tensor), compares its logits on a real tile
   with onnxruntime-cpu on the fp32 parent, and times it; whatever does not work is in the result with its reason.
3. Segments a mosaic from Zarr to Zarr with each engine that works; the rate is set against that of the engine alone.

With ``--device cpu`` it rehearses all of this on the CPU engines, in small.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, make_mosaic, read_slices, save

from unet_deploy.errors import UnetDeployError
from unet_deploy.exporters.calibration import CalibrationSource
from unet_deploy.exporters.export import export_precisions
from unet_deploy.runtime import Artifact, CheckedEngine, load_artifact, open_engine, segment
from unet_deploy.runtime.engines import candidates
from unet_deploy.runtime.machine import read_gpus
from unet_deploy.runtime.normalise import normaliser_of_image

PRECISIONS = ("fp32", "fp16", "int8")
SECONDS = 3.0
"""About how long an engine is timed at one tile."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--cores", type=int, nargs="+", default=[768, 1792])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--side", type=int, default=8192)
    options = parser.parse_args()
    gpus = read_gpus()
    engine_rows: list[dict[str, Any]] = []
    run_rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = make_mosaic(folder / "mosaic.zarr", options.side)
        for width in options.width:
            artifacts = make_artifacts(folder, width)
            for precision, artifact in artifacts.items():
                for kind in candidates(options.device, precision=precision):
                    case = {"width": width, "precision": precision, "engine": kind.name}
                    print(*case.values(), file=sys.stderr, flush=True)
                    rows = time_engine(artifact, artifacts["fp32"], kind.name, options)
                    engine_rows += [{**case, **row} for row in rows]
                    if any("mpx_per_s" in row for row in rows):
                        alone = max(row.get("mpx_per_s", 0.0) for row in rows)
                        run_rows.append({**case, **time_run(artifact, kind.name, volume, folder, alone, options)})
    save(
        f"gpu-{'-'.join(gpus.found[0].name.split()).lower()}" if gpus.found else f"gpu-rehearsal-{options.device}",
        {
            "what": "engines against onnxruntime-cpu on the fp32 network, and their speed in output pixels",
            "command": f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}".strip(),
            "gpus": [gpu.name for gpu in gpus.found],
            "driver": gpus.found[0].driver if gpus.found else gpus.note,
            "engines": engine_rows,
            "runs": run_rows,
        },
    )


def make_artifacts(folder: Path, width: int) -> dict[str, Artifact]:
    """Return the bundled network at a width, by precision."""
    checkpoint = folder / f"width{width}.pt"
    script = [sys.executable, ROOT / "benchmarks" / "wide_network.py", checkpoint, "--factor", str(width // 16)]
    subprocess.run(script, check=True, stdout=sys.stderr)
    images = folder / "calibration"
    if not images.exists():
        from skimage.io import imsave

        images.mkdir()
        for index, image in enumerate(read_slices()[:8]):
            imsave(images / f"{index}.png", np.asarray(image), check_contrast=False)
    outputs = {precision: folder / f"width{width}.{precision}.onnx" for precision in PRECISIONS}
    reports = export_precisions(checkpoint, outputs, calibrate=CalibrationSource(path=images))
    return {precision: load_artifact(report.path) for precision, report in zip(PRECISIONS, reports, strict=True)}


def time_engine(artifact: Artifact, parent: Artifact, name: str, options: Any) -> list[dict[str, Any]]:
    """Return difference and rate of one engine at every tile and batch, or why there is none."""
    rows: list[dict[str, Any]] = []
    try:
        engine = open_engine(artifact, device=options.device, engine=name)
    except UnetDeployError as error:
        return [{"failed": "; ".join([error.headline, *error.details])}]
    described = engine.describe().to_object()
    reference = open_engine(parent, engine="onnxruntime-cpu")
    try:
        for core in options.cores:
            tile = real_tile(artifact, core)
            expected = reference.infer(tile)
            rows += [
                {"tile": tile.shape[-1], "batch": batch, **compare(engine, tile, expected, batch)}
                for batch in options.batches
            ]
    finally:
        engine.close()
        reference.close()
    rows[0].update(versions=described["versions"], provider=described["provider"], device=described["device"])
    return rows


def compare(engine: CheckedEngine, tile: np.ndarray, expected: np.ndarray, batch: int) -> dict[str, Any]:
    """Return how far the logits of a batch are from those expected, and megapixels of output a second."""
    inputs = np.repeat(tile, batch, axis=0)
    try:
        came = engine.infer(inputs)[-1:]
        engine.infer(inputs)
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            engine.infer(inputs)
            runs += 1
        seconds = (time.perf_counter() - start) / runs
    except (UnetDeployError, RuntimeError, MemoryError) as error:  # onnxruntime's own are RuntimeErrors
        return {"failed": str(error).splitlines()[0]}
    return {
        "max_difference": float(np.abs(came - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "labels_equal": float((came.argmax(1) == expected.argmax(1)).mean()),
        "seconds": round(seconds, 5),
        "mpx_per_s": round(batch * expected[0, 0].size / seconds / 1e6, 3),
    }


def real_tile(artifact: Artifact, core: int) -> np.ndarray:
    """Return a normalised tile (1, 1, y, x) of real slices, mirrored where they end."""
    side = artifact.card.geometry.tile_side(core)
    image = np.asarray(read_slices()[0])
    image = np.pad(image, [(0, max(0, side - n)) for n in image.shape], mode="reflect")[None, :side, :side]
    return np.asarray(normaliser_of_image(artifact.card, image)(image)[None])


def time_run(artifact: Artifact, engine: str, volume: Path, folder: Path, alone: float, options: Any) -> dict[str, Any]:
    """Return the rate of a whole run from Zarr to Zarr, the second of two: the first may build or tune."""
    rates: list[float] = []
    for _ in range(2):
        result = segment(
            volume,
            model=artifact,
            output=folder / "out.ome.zarr",
            overwrite=True,
            write=("labels",),
            device=options.device,
            engine=engine,
            batch=max(options.batches),
        )
        rates.append(result.pixels_per_second / 1e6)
    return {
        "side": options.side,
        "mpx_per_s": round(rates[-1], 3),
        "first_mpx_per_s": round(rates[0], 3),
        "engine_alone_mpx_per_s": alone,
        "share_of_engine": round(rates[-1] / alone, 3),
        "stages_s": {key: round(value, 3) for key, value in result.seconds.items()},
        "tile": [result.plan.tile_y, result.plan.tile_x],
    }


if __name__ == "__main__":
    main()
