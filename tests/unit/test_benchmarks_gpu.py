"""benchmarks/gpu.py, which is to measure on a machine that is at hand for minutes: nothing it measured may be lost."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda_fake import FakeCudart
from tests.tensorrt_runtime_fake import FakeTensorrt, plan_maker
from unet_deploy.errors import DeviceError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.cost import tile_flops
from unet_deploy.runtime.engines.base import EngineOptions
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.onnxruntime_cuda import OnnxruntimeCudaEngine
from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="benchmarks/ is not part of a source distribution")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The modules gpu and gpu_engines."""
    monkeypatch.syspath_prepend(str(FOLDER))  # type: ignore[no-untyped-call]
    return importlib.import_module("gpu"), importlib.import_module("gpu_engines")


def test_what_was_measured_stays_whatever_comes_after(scripts: tuple[Any, Any], tmp_path: Path) -> None:
    gpu, _ = scripts
    results = gpu.Results(path=tmp_path / "r.json", head={"what": "a test"}, deadline=time.monotonic() + 60)

    def fail(error: Exception) -> Any:
        raise error

    results.measure("engines", {"tile": 1}, lambda: {"mpx_per_s": 2.0})
    results.measure("engines", {"tile": 2}, lambda: fail(DeviceError("no GPU", "as it seems", fix="buy one")))
    results.measure("runs", {"in": "memory"}, lambda: fail(RuntimeError("CUDA error 700\nand more")))
    results.deadline = time.monotonic() - 1
    assert results.measure("runs", {"in": "disk", "planes": 3}, lambda: fail(AssertionError("not begun"))) == {}
    kept = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [row.get("mpx_per_s") for row in kept["engines"]] == [2.0, None]
    assert kept["engines"][1]["failed"] == "no GPU; as it seems"
    assert kept["runs"][0]["failed"] == "RuntimeError: CUDA error 700"
    assert kept["not_measured"] == ["runs: disk, 3"]


@pytest.mark.parametrize("use_graphs", [False, True])
def test_an_engine_is_timed_from_raw_bytes_on(
    scripts: tuple[Any, Any], tiny_artifact: Artifact, use_graphs: bool
) -> None:
    _, gpu_engines = scripts
    side = tiny_artifact.card.geometry.tile_side(16)
    rt = FakeCudart(seed=1)
    trt = FakeTensorrt(rt, is_rtx=False)
    made = TensorrtEngine(
        tiny_artifact,
        EngineOptions(batch_shape=(2, 1, side, side)),
        flavour="tensorrt",
        get_plan=plan_maker(trt),
        modules=(trt, rt),
        use_graphs=use_graphs,
    )
    engine = CheckedEngine(made, tiny_artifact.card).open()
    raw = np.repeat(gpu_engines.real_tile(side), 2, axis=0)
    row = gpu_engines.time_engine(engine, tiny_artifact, raw, seconds=0.05)
    assert row["raw_in_bytes_out"]
    assert row["batches"] >= gpu_engines.WARM_UP
    flops_per_pixel = row["tflops"] / row["mpx_per_s"] * 1e6
    assert flops_per_pixel == pytest.approx(tile_flops(tiny_artifact.card.network, side, side) / 16**2, rel=0.1)
    expected = made.infer(gpu_engines.normalised(tiny_artifact, raw[:1]))
    parity = gpu_engines.compare(engine, tiny_artifact, raw[:1], expected)
    assert (parity["max_difference"], parity["labels_equal"]) == (0.0, 1.0)
    engine.close()
    assert rt.leaks() == {}


def test_the_variants_are_what_they_are_called(scripts: tuple[Any, Any], tiny_artifact: Artifact) -> None:
    _, gpu_engines = scripts
    found = {variant.words: variant for variant in gpu_engines.variants("cuda", "fp16")}
    assert {"tensorrt", "tensorrt with graphs", "onnxruntime-cuda channels last"} <= found.keys()
    assert found["tensorrt"].factory("cuda", (1, 1, 60, 60)) is None  # `segment` knows it by its name
    graphs = found["tensorrt with graphs"].factory("cuda:1", (1, 1, 60, 60))(tiny_artifact)
    assert isinstance(graphs, TensorrtEngine)
    last = found["onnxruntime-cuda channels last"].factory("cuda:1", (1, 1, 60, 60))(tiny_artifact)
    assert isinstance(last, OnnxruntimeCudaEngine)
    assert (last._provider.index, last._provider.options["prefer_nhwc"]) == (1, "1")
    assert {variant.engine for variant in gpu_engines.variants("cpu", "fp32")} == {"openvino", "onnxruntime-cpu"}


def test_the_peak_is_that_of_the_gpu(scripts: tuple[Any, Any]) -> None:
    _, gpu_engines = scripts
    names = ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA L40S", "NVIDIA L4", "NVIDIA Old", None]
    assert [gpu_engines.peak_of(name, "fp16") for name in names] == [989, 989, 756, 362, 121, None, None]
    assert gpu_engines.peak_of("NVIDIA H200", "fp64") is None


def test_a_stack_is_the_mosaic_again_and_again(scripts: tuple[Any, Any], tmp_path: Path) -> None:
    import zarr

    gpu, _ = scripts
    array = zarr.open_array(str(gpu.make_stack(tmp_path / "stack.zarr", 512, 3)), mode="r")
    assert (array.shape, array.chunks) == ((3, 512, 512), (1, 512, 512))
    assert np.asarray(array[0]).std() > 1
    np.testing.assert_array_equal(np.asarray(array[2]), np.asarray(array[0]))
