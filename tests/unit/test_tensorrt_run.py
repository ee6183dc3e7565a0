"""A whole run on the GPU that is made up: from raw bytes, through little memory, to the result of the CPU."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda_fake import FakeCudart
from tests.tensorrt_runtime_fake import FakeTensorrt, plan_maker
from tests.tiny import make_pixels, read_arrays, write_image
from unet_deploy.runtime import segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import Flavour
from unet_deploy.runtime.engines.base import EngineOptions
from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

TILE = (140, 124)


PLACES = {"uint8": 1, "uint16": 40, "int16": -40, "float16": 1, "float32": 0.25}
"""What a grey value of 8 bit is in volumes of other types."""


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write_image(tmp_path / "v.zarr", make_pixels((5, 200, 170)))


class Factory:
    """Makes the engine on a GPU of so much memory."""

    def __init__(self, flavour: Flavour, *, memory_bytes: int) -> None:
        self.flavour = flavour
        self.rt = FakeCudart(seed=3, memory_bytes=memory_bytes)
        self.trt = FakeTensorrt(self.rt, is_rtx=flavour == "tensorrt-rtx")

    def __call__(self, artifact: Artifact) -> TensorrtEngine:
        return TensorrtEngine(
            artifact,
            EngineOptions(batch_shape=(4, 1, *TILE)),
            flavour=self.flavour,
            get_plan=plan_maker(self.trt),
            modules=(self.trt, self.rt),
        )


def largest_difference(came: dict[str, Any], expected: dict[str, Any]) -> dict[str, int]:
    assert came.keys() == expected.keys()
    return {
        name: int(np.abs(array.astype(np.int64) - expected[name]).max())
        for name, array in came.items()
        if array.dtype == np.uint8
    }


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("memory", ["much", "little"])
def test_a_run_gives_what_the_cpu_gives(volume: Path, tiny_artifact: Artifact, flavour: Flavour, memory: str) -> None:
    cpu = segment(volume, model=tiny_artifact, engine="onnxruntime-cpu", output=volume.with_name("cpu.zarr"))
    # Half of what 4 such tiles need: each takes 8 bytes a pixel in this made-up network, and slots beside.
    factory = Factory(flavour, memory_bytes=2**30 if memory == "much" else 4 * TILE[0] * TILE[1] * 8 // 2)
    gpu = segment(
        volume,
        model=tiny_artifact,
        engine_factory=factory,
        batch=4,
        tile=TILE,
        output=volume.with_name("gpu.zarr"),
    )
    differences = largest_difference(read_arrays(gpu.output), read_arrays(cpu.output))
    assert differences.pop("labels/segmentation/0") == 0
    assert all(difference <= 1 for difference in differences.values())
    assert (len(gpu.rungs) > 1) == (memory == "little")
    assert gpu.engine.engine == flavour
    raw = [network for plan, network in factory.trt.plans.items() if b"ByteForm" in plan]
    assert len(raw) == 1
    assert len(raw[0].batches) >= 10  # one byte a pixel went in, and bytes came out
    gc.collect()  # the run's engine was let go of
    assert factory.rt.in_flight == 0
    assert factory.rt.leaks() == {}


@pytest.mark.parametrize("dtype", PLACES)
def test_pixels_of_any_type_go_to_the_gpu_as_they_are(tmp_path: Path, tiny_artifact: Artifact, dtype: str) -> None:
    """TensorRT has neither uint16 nor int16: they are sent as float32, and bytes come back all the same."""
    pixels = (make_pixels((2, 200, 170)).astype(np.float32) * PLACES[dtype]).astype(dtype)
    volume = write_image(tmp_path / "v.zarr", pixels)
    options: dict[str, Any] = {"model": tiny_artifact, "tile": TILE, "input_range": (0, 255 * abs(PLACES[dtype]))}
    cpu = segment(volume, engine="onnxruntime-cpu", output=tmp_path / "cpu.zarr", **options)
    factory = Factory("tensorrt", memory_bytes=2**30)
    gpu = segment(volume, engine_factory=factory, batch=4, output=tmp_path / "gpu.zarr", **options)
    differences = largest_difference(read_arrays(gpu.output), read_arrays(cpu.output))
    assert differences.pop("labels/segmentation/0") == 0
    assert all(difference <= 1 for difference in differences.values())
    raw = {plan: network for plan, network in factory.trt.plans.items() if b"ByteForm" in plan}
    ((plan, network),) = raw.items()
    assert b"uint8" in plan if dtype == "uint8" else b"float32" in plan
    assert len(network.batches) >= 4
