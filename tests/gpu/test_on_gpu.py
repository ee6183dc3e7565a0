"""What only a real GPU can show: precision, bytes against logits, order, memory that runs out and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.engines import GpuEngines
from tests.tiny import make_pixels, read_arrays, write_image
from unet_deploy.errors import DeviceMemoryError
from unet_deploy.runtime import segment
from unet_deploy.runtime.artifact import Artifact, load_artifact, load_bundled_artifact
from unet_deploy.runtime.engines.base import ByteForm, ByteResult, EngineOptions
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine
from unet_deploy.runtime.machine import ask_driver
from unet_deploy.runtime.normalise import normaliser_of_image, to_labels, to_probabilities
from unet_deploy.runtime.tolerances import TOLERANCES

if not ask_driver().found:
    pytest.skip(f"no NVIDIA GPU: {ask_driver().note}", allow_module_level=True)

FORM = ByteForm(dtype="uint8", kinds=("labels", "probabilities"))
LEFT_BYTES = 2**29


def noise(artifact: Artifact, n: int, side: int, *, seed: int = 0) -> Any:
    """Return raw tiles of structured noise."""
    return make_pixels((n, artifact.card.network.in_channels, side, side), seed=seed)


def normalised(artifact: Artifact, raw: Any) -> Any:
    return np.stack([normaliser_of_image(artifact.card, image)(image) for image in raw])


def on_cpu(artifact: Artifact, image: Any) -> Any:
    engine = OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision)
    engine.open()
    logits = engine.infer(image)
    engine.close()
    return logits


@contextmanager
def opened(
    gpu: GpuEngines, artifact: Artifact, shape: tuple[int, int, int, int], **settings: Any
) -> Iterator[CheckedEngine]:
    engine = CheckedEngine(gpu.make(artifact, shape, **settings), artifact.card).open()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def membrane() -> Artifact:
    """The bundled network."""
    return load_bundled_artifact()


# Precision.


def test_fp32_is_the_cpus(gpu: GpuEngines, membrane: Artifact) -> None:
    """TF32 is off: with it the difference would be a thousandth of the largest logit."""
    side = membrane.card.geometry.tile_side(384)
    image = normalised(membrane, noise(membrane, 2, side))
    expected = on_cpu(membrane, image)
    with opened(gpu, membrane, image.shape) as engine:
        came = engine.infer(image)
    limit = TOLERANCES[gpu.name, "fp32"].limit(float(np.abs(expected).max()))
    assert float(np.abs(came - expected).max()) <= limit
    assert (to_labels_of(came) == to_labels_of(expected)).mean() >= 0.9999


def test_fp16_is_within_its_tolerance(gpu: GpuEngines, tiny_products: dict[str, Path]) -> None:
    whole, half = load_artifact(tiny_products["fp32"]), load_artifact(tiny_products["fp16"])
    side = whole.card.geometry.tile_side(96)
    image = normalised(whole, noise(whole, 2, side))
    expected = on_cpu(whole, image)
    with opened(gpu, half, image.shape) as engine:
        assert engine.describe().precision == "fp16"
        came = engine.infer(image)
    tolerance = TOLERANCES[gpu.name, "fp16"]
    difference = np.abs(came - expected)
    assert float(difference.max()) <= tolerance.limit(float(np.abs(expected).max()))
    assert float(difference.mean()) <= tolerance.mean_limit(float(np.abs(expected).max()))
    assert (to_labels_of(came) == to_labels_of(expected)).mean() >= tolerance.labels


def to_labels_of(logits: Any) -> Any:
    return np.stack([to_labels(tile) for tile in logits])


# Bytes.


@pytest.mark.parametrize("settings", [{}, {"use_graphs": True}, {"prefers_nhwc": True}], ids=str)
def test_bytes_are_the_hosts_within_one_level(gpu: GpuEngines, membrane: Artifact, settings: dict[str, bool]) -> None:
    if "prefers_nhwc" in settings and gpu.name != "onnxruntime-cuda":
        pytest.skip(f"{gpu.name} chooses the memory layout by itself")
    geometry = membrane.card.geometry
    sides = [geometry.tile_side(core) for core in (64, 64, 64, 64, 128, 128, 128, 64)]
    batches = [noise(membrane, 1 + i % 3 // 2, side, seed=i) for i, side in enumerate(sides)]
    normaliser = normaliser_of_image(membrane.card, batches[0][0])
    gain, offset = normaliser.gain_and_offset()
    with opened(gpu, membrane, (2, 1, max(sides), max(sides)), **settings) as engine:
        if not engine.open_bytes(FORM):
            pytest.skip(f"{gpu.name} does not begin at raw pixels")
        came = [
            (result.labels.copy(), result.probabilities.copy(), result.checksum.copy())
            for result in engine.stream(batches, FORM, gain=gain, offset=offset)
            if result.labels is not None and result.probabilities is not None
        ]
        assert len(came) == len(batches)
        for raw, (labels, probabilities, checksum) in zip(batches, came, strict=True):
            logits = engine.infer(np.stack([normaliser(image) for image in raw]))
            expected = np.stack([to_probabilities(tile) for tile in logits])
            assert np.abs(probabilities.astype(np.int16) - expected).max() <= 1
            near_a_tie = np.abs(logits[:, 1] - logits[:, 0]) < 1e-3 * np.abs(logits).max()
            assert (labels == to_labels_of(logits))[~near_a_tie].all()
            assert np.isfinite(checksum).all()


@pytest.mark.parametrize("use_graphs", [False, True])
def test_blocks_of_several_threads_get_what_is_theirs(
    gpu: GpuEngines, tiny_artifact: Artifact, use_graphs: bool
) -> None:
    """Their batches follow each other through one stream."""
    one, nothing = np.ones(1, np.float32), np.zeros(1, np.float32)
    blocks = [[noise(tiny_artifact, 2, 60, seed=10 * i + j) for j in range(5)] for i in range(12)]
    with opened(gpu, tiny_artifact, (2, 1, 60, 60), use_graphs=use_graphs) as engine:
        if not engine.open_bytes(FORM):
            pytest.skip(f"{gpu.name} does not begin at raw pixels")

        def run(tiles: list[Any]) -> list[list[float]]:
            came: list[list[float]] = []

            def take(number: int, result: ByteResult) -> None:
                assert number == len(came)
                came.append(result.checksum.tolist())

            engine.feed(lambda: iter(tiles), FORM, n_batches=len(tiles), take=take, gain=one, offset=nothing)
            return came

        alone = [run(tiles) for tiles in blocks]
        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(run, blocks)] == alone


def test_16_bit_pixels_are_taken_as_they_are(gpu: GpuEngines, tiny_artifact: Artifact, tmp_path: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((2, 200, 170)).astype(np.uint16) * 40)
    options: dict[str, Any] = {"model": tiny_artifact, "tile": (140, 124), "input_range": (0, 255 * 40)}
    cpu = read_arrays(segment(volume, engine="onnxruntime-cpu", output=tmp_path / "cpu.zarr", **options).output)
    factory = gpu.factory((1, 1, 140, 124))
    came = read_arrays(segment(volume, engine_factory=factory, output=tmp_path / "gpu.zarr", **options).output)
    for name, array in came.items():
        if array.dtype == np.uint8 and "labels" not in name:
            assert np.abs(array.astype(np.int16) - cpu[name]).max() <= 1, name


def test_a_stream_that_is_left_leaves_the_engine_usable(gpu: GpuEngines, tiny_artifact: Artifact) -> None:
    shape = (2, 1, 60, 60)
    one = np.ones(1, np.float32)
    image = normalised(tiny_artifact, noise(tiny_artifact, 2, 60))
    with opened(gpu, tiny_artifact, shape) as engine:
        expected = engine.infer(image)
        if not engine.open_bytes(FORM):
            pytest.skip(f"{gpu.name} does not begin at raw pixels")
        for wanted in range(1, 6):
            stream = engine.stream([noise(tiny_artifact, 2, 60, seed=i) for i in range(9)], FORM, gain=one, offset=one)
            for _ in range(wanted):
                next(stream)
            del stream
            np.testing.assert_array_equal(engine.infer(image), expected)
            assert engine.open_bytes(FORM)


# Memory.


def cudart() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings are not installed")


def free_bytes() -> int:
    rt = cudart()
    rt.cudaSetDevice(0)
    return int(rt.cudaMemGetInfo()[1])


@contextmanager
def little_memory() -> Iterator[None]:
    """Leave no more than `LEFT_BYTES` of the GPU to anyone."""
    rt, taken = cudart(), []
    rt.cudaSetDevice(0)
    try:
        while (room := free_bytes() - LEFT_BYTES) > 2**20:
            status, address = rt.cudaMalloc(min(room, 2**34))
            if int(status):
                break
            taken.append(address)
        yield
    finally:
        for address in taken:
            rt.cudaFree(address)


def test_closing_gives_the_memory_back(gpu: GpuEngines, membrane: Artifact) -> None:
    side = membrane.card.geometry.tile_side(384)
    image = normalised(membrane, noise(membrane, 1, side))
    left: list[int] = []
    for _ in range(4):
        with opened(gpu, membrane, image.shape) as engine:
            engine.infer(image)
        left.append(free_bytes())
    assert max(left[1:]) - min(left[1:]) < 64 * 2**20  # libraries keep something, once


def test_no_memory_is_told_and_survived(gpu: GpuEngines, membrane: Artifact) -> None:
    side = membrane.card.geometry.tile_side(832)
    small = normalised(membrane, noise(membrane, 1, membrane.card.geometry.smallest_tile))
    with opened(gpu, membrane, (32, 1, side, side)) as engine:
        expected = engine.infer(small)
        with little_memory(), pytest.raises(DeviceMemoryError, match="memory"):
            engine.infer(np.zeros((32, 1, side, side), np.float32))
        np.testing.assert_array_equal(engine.infer(small), expected)


def test_the_ladder_gives_the_same_result(gpu: GpuEngines, membrane: Artifact, tmp_path: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((1, 1500, 1500)))
    side = membrane.card.geometry.tile_side(832)
    factory: Callable[[Artifact], Any] = gpu.factory((32, 1, side, side))
    settings: dict[str, Any] = {"model": membrane, "tile": (side, side), "engine_factory": factory}
    much = segment(volume, batch=1, output=tmp_path / "much.zarr", **settings)
    other: Callable[[Artifact], Any] = gpu.factory((32, 1, side, side))
    with little_memory():
        little = segment(volume, batch=32, output=tmp_path / "little.zarr", **settings | {"engine_factory": other})
    assert len(much.rungs) == 1
    assert len(little.rungs) > 1
    came, expected = read_arrays(little.output), read_arrays(much.output)
    assert came.keys() == expected.keys()
    labels = "labels/segmentation/0"
    assert (came[labels] == expected[labels]).mean() >= 0.9999
    differences = [np.abs(came[name].astype(np.int16) - expected[name]).max() for name in came if "labels" not in name]
    assert max(differences, default=0) <= 1


def test_options_name_the_gpu(gpu: GpuEngines, tiny_artifact: Artifact) -> None:
    assert EngineOptions().device_index == 0
    with opened(gpu, tiny_artifact, (1, 1, 60, 60)) as engine:
        said = engine.describe()
    assert (said.engine, said.device) == (gpu.name, "cuda:0")
    assert all(said.versions.values())
