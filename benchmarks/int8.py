"""What int8 costs in accuracy, whatever it is calibrated on: Rand error of ISBI slices that were not trained on.

    python benchmarks/int8.py

The bundled membrane network is calibrated on five sets of slices and scored on slices 14, 15 and 29, which its training
left out (14 and 29 chose its best step), through both CPU engines; the Rand error of fp32 stands beside it. Needs the
ISBI 2012 slices at ../shared/data.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ISBI_TEST, ROOT, save
from skimage.io import imread

from unet_deploy.exporters.calibration import CalibrationSource
from unet_deploy.exporters.export import export_precisions
from unet_deploy.metrics.isbi import rand_error
from unet_deploy.runtime import load_artifact, open_engine
from unet_deploy.runtime.normalise import normaliser_of_image

TRAINING = ISBI_TEST.parent / "train"
HELD_OUT = ("14", "15", "29")
ENGINES = ("onnxruntime-cpu", "openvino")


def main() -> None:
    images = [imread(TRAINING / "image" / f"{name}.png") for name in HELD_OUT]
    truth = [np.asarray(imread(TRAINING / "label" / f"{name}.png") > 0, np.uint8) for name in HELD_OUT]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, outputs = folder / "model.pt", {"fp32": folder / "model.onnx", "int8": folder / "model.int8.onnx"}
        script = [sys.executable, ROOT / "benchmarks" / "wide_network.py", checkpoint, "--factor", "1"]
        subprocess.run(script, check=True, stdout=sys.stderr)
        rows: list[dict[str, Any]] = []
        expected: list[np.ndarray] = []
        for calibration, files in calibration_sets().items():
            source = copy(files, folder / calibration)
            export_precisions(checkpoint, outputs, calibrate=CalibrationSource(path=source), overwrite=True)
            if not expected:
                expected = predict(outputs["fp32"], ENGINES[0], images)
                rows.append({"precision": "fp32", "engine": ENGINES[0], "rand_error": score(truth, expected)})
            for engine in ENGINES:
                came = predict(outputs["int8"], engine, images)
                equal = [float(((a > 0.5) == (b > 0.5)).mean()) for a, b in zip(came, expected, strict=True)]
                rows.append(
                    {
                        "precision": "int8",
                        "calibrated_on": calibration,
                        "engine": engine,
                        "rand_error": score(truth, came),
                        "labels_equal": round(float(np.mean(equal)), 5),
                    }
                )
    save("int8-rand", {"what": f"Rand error on slices {', '.join(HELD_OUT)}, then their mean", "rows": rows})


def calibration_sets() -> dict[str, list[Path]]:
    """Return files to calibrate on, none of them scored."""
    tests = sorted(ISBI_TEST.glob("*.png"))
    trained = [file for file in sorted((TRAINING / "image").glob("*.png")) if file.stem not in HELD_OUT]
    half = len(tests) // 2
    return {
        "30 test slices": tests,
        "first half of them": tests[:half],
        "second half of them": tests[half:],
        "one of them": tests[20:21],
        "training slices": trained,
    }


def copy(files: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for file in files:
        shutil.copy(file, folder)
    return folder


def predict(model: Path, engine_name: str, images: list[np.ndarray]) -> list[np.ndarray]:
    """Return the probability of a cell's interior by image, in one pass each."""
    artifact = load_artifact(model)
    geometry = artifact.card.geometry
    interior = [c.name for c in artifact.card.classes].index("cell interior")
    engine = open_engine(artifact, engine=engine_name)
    try:
        found = []
        for image in images:
            windows = [geometry.whole_window(extent) for extent in image.shape]
            margins = [(-w.start, w.stop - extent) for w, extent in zip(windows, image.shape, strict=True)]
            padded = np.pad(image, margins, mode="reflect")[None]
            logits = engine.infer(normaliser_of_image(artifact.card, padded)(padded)[None])[0].astype(np.float64)
            powers = np.exp(logits - logits.max(axis=0))[:, : image.shape[0], : image.shape[1]]
            found.append(powers[interior] / powers.sum(axis=0))
        return found
    finally:
        engine.close()


def score(truth: list[np.ndarray], probabilities: list[np.ndarray]) -> list[float]:
    errors = [rand_error(t, p).error for t, p in zip(truth, probabilities, strict=True)]
    return [round(error, 4) for error in (*errors, float(np.mean(errors)))]


if __name__ == "__main__":
    main()
