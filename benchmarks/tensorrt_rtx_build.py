"""How long TensorRT-RTX takes to build the plans of a network without a GPU, and how large they are.

    python benchmarks/tensorrt_rtx_build.py CHECKPOINT.pt [--calibrate PATH] [--runs 3]

Everything `unet-deploy export --target tensorrt-rtx` proves is proved first. Then each precision's graph is built as
often as asked, in turn; seconds are medians of the build alone, with TensorRT-RTX already loaded. Without --calibrate,
int8 is calibrated on the procedural sample, which decides neither time nor size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import zarr
from common import save

from unet_deploy.card import Precision
from unet_deploy.exporters.calibration import CalibrationSource, read_tiles
from unet_deploy.exporters.products import Product, derive, make_parent
from unet_deploy.exporters.tensorrt import default_profile, make_int8_graph
from unet_deploy.runtime.engines.tensorrt_build import BuiltPlan, build_plan
from unet_deploy.sample import em_like_volume
from unet_deploy.training.checkpoint import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    model, card = load_checkpoint(options.checkpoint)
    parent = make_parent(model, card, source=options.checkpoint.name, progress=print)
    with tempfile.TemporaryDirectory() as folder:
        source = CalibrationSource(path=options.calibrate or _write_sample(Path(folder) / "sample.zarr"))
        tiles = read_tiles(source, parent.artifact, count=4)
    products: dict[Precision, Product] = {
        "fp32": parent,
        "fp16": derive("fp16", parent.artifact, model, tiles, progress=print),
        "int8": make_int8_graph(parent.artifact, tiles, progress=print),
    }
    profile = default_profile(card)
    built: dict[Precision, list[BuiltPlan]] = {precision: [] for precision in products}
    for _ in range(options.runs):
        for precision, product in products.items():
            built[precision].append(build_plan(product.artifact.data, flavour="tensorrt-rtx", profiles=[profile]))
    rows = [
        {
            "precision": precision,
            "seconds": round(statistics.median(plan.seconds for plan in plans), 2),
            "plan_bytes": len(plans[0].data),
            "onnx_bytes": len(products[precision].artifact.data),
            "labels_equal": None
            if (parity := products[precision].artifact.card.parity) is None
            else parity.labels_equal,
        }
        for precision, plans in built.items()
    ]
    first = built["fp32"][0]
    save(
        f"tensorrt-rtx-build-width{card.unet.base_width}",
        {
            "what": "plans built by TensorRT-RTX without a GPU; none of them was run",
            "command": f"python benchmarks/tensorrt_rtx_build.py {options.checkpoint.name}",
            "data": tiles.data,
            "tensorrt_rtx": first.version,
            "compute_capabilities": first.compute_capabilities,
            "profile": [profile.minimum, profile.optimum, profile.maximum],
            "rows": rows,
        },
    )


def _write_sample(path: Path) -> Path:
    pixels = em_like_volume(shape=(2, 768, 768))
    array = zarr.create_array(str(path), shape=pixels.shape, chunks=(1, 384, 384), dtype=pixels.dtype)
    array[...] = pixels
    return path


if __name__ == "__main__":
    main()
