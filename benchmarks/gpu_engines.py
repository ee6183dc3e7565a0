"""What `gpu.py` times: engines with their variants, PyTorch for comparison, and what a GPU could do at most."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import read_slices

from unet_deploy.runtime import Artifact, CheckedEngine, open_engine
from unet_deploy.runtime.cost import tile_flops
from unet_deploy.runtime.engines import candidates
from unet_deploy.runtime.engines.base import ByteForm, EngineOptions
from unet_deploy.runtime.engines.choice import parse_device
from unet_deploy.runtime.normalise import normaliser_of_image

FORM = ByteForm(dtype="uint8", kinds=("labels", "probabilities"))
WARM_UP = 4
"""Batches: one for each slot, and one that finds everything ready."""
PEAKS: dict[str, dict[str, float]] = {
    "B200": {"fp16": 2250, "int8": 4500},
    "H200": {"fp16": 989, "int8": 1979, "fp32": 67},
    "H100 PCIe": {"fp16": 756, "int8": 1513, "fp32": 51},
    "H100": {"fp16": 989, "int8": 1979, "fp32": 67},
    "A100": {"fp16": 312, "int8": 624, "fp32": 19.5},
    "L40S": {"fp16": 362, "int8": 733, "fp32": 91.6},
    "RTX 4090": {"fp16": 165, "int8": 660, "fp32": 82.6},
    "RTX 3090": {"fp16": 71, "int8": 284, "fp32": 35.6},
    "L4": {"fp16": 121, "int8": 242, "fp32": 30.3},
    "T4": {"fp16": 65, "int8": 130, "fp32": 8.1},
    "V100": {"fp16": 125, "fp32": 15.7},
}
"""Dense TFLOP/s (or TOP/s), accumulated in fp32 or int32; fp32 is without tensor cores, since TF32 is off. From each
one's data sheet; that of a B200, H200, H100, L40S or L4 gives fp16 and int8 with sparsity, which is twice these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """An engine by name, perhaps with settings that are not its defaults; `words` is how the result calls it."""

    engine: str
    words: str
    use_graphs: bool = False
    prefers_nhwc: bool = False

    def make(self, artifact: Artifact, options: EngineOptions) -> Any:
        """Return the engine itself, not yet open."""
        if self.engine == "onnxruntime-cuda":
            from unet_deploy.runtime.engines.onnxruntime_cuda import OnnxruntimeCudaEngine, cuda_provider

            provider = cuda_provider(options.device_index, prefers_nhwc=self.prefers_nhwc, use_graphs=self.use_graphs)
            return OnnxruntimeCudaEngine(artifact, options, provider=provider)
        from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

        flavour: Any = self.engine
        return TensorrtEngine(artifact, options, flavour=flavour, use_graphs=self.use_graphs)

    def open(self, artifact: Artifact, device: str, shape: tuple[int, int, int, int]) -> CheckedEngine:
        """Return the engine, open, for batches of a shape."""
        if self.words == self.engine:
            return open_engine(artifact, device=device, engine=self.engine, batch_shape=shape)
        options = EngineOptions(device_index=parse_device(device)[1], batch_shape=shape)
        return CheckedEngine(self.make(artifact, options), artifact.card).open()

    def factory(self, device: str, shape: tuple[int, int, int, int]) -> Callable[[Artifact], Any] | None:
        """Return what `segment` takes as its `engine_factory`; None where the name says it all."""
        if self.words == self.engine:
            return None
        return partial(self.make, options=EngineOptions(device_index=parse_device(device)[1], batch_shape=shape))


def variants(device: str, precision: str) -> list[Variant]:
    """Return the engines for a device, each followed by its variants."""
    found: list[Variant] = []
    for kind in candidates(device, precision=precision):
        found.append(Variant(engine=kind.name, words=kind.name))
        if kind.device == "cuda":
            found.append(Variant(engine=kind.name, words=f"{kind.name} with graphs", use_graphs=True))
        if kind.name == "onnxruntime-cuda":
            found.append(Variant(engine=kind.name, words=f"{kind.name} channels last", prefers_nhwc=True))
    return sorted(found, key=lambda variant: not variant.engine.startswith("tensorrt"))


def real_tile(side: int) -> npt.NDArray[np.uint8]:
    """Return a raw tile (1, 1, y, x) of real slices, mirrored where they end."""
    image = np.asarray(read_slices()[0])
    image = np.pad(image, [(0, max(0, side - n)) for n in image.shape], mode="reflect")
    return np.ascontiguousarray(image[None, None, :side, :side])


def normalised(artifact: Artifact, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return what the network is given for raw tiles."""
    normalise = normaliser_of_image(artifact.card, raw[0])
    return np.stack([np.asarray(normalise(one)) for one in raw])


def compare(engine: CheckedEngine, artifact: Artifact, raw: Any, expected: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return how far the logits of a tile are from those of the fp32 network on the CPU."""
    came = engine.infer(normalised(artifact, raw))
    return {
        "max_difference": float(np.abs(came - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "labels_equal": round(float((came.argmax(1) == expected.argmax(1)).mean()), 6),
    }


def time_engine(engine: CheckedEngine, artifact: Artifact, raw: Any, *, seconds: float) -> dict[str, Any]:
    """Return the rate of batches that follow each other, copies to the device and back included."""
    n, _, y, x = raw.shape
    geometry = artifact.card.geometry
    if engine.open_bytes(FORM):
        gain, offset = normaliser_of_image(artifact.card, raw[0]).gain_and_offset()
        run = partial(_stream, engine, raw, gain=gain, offset=offset)
    else:
        inputs = normalised(artifact, raw)

        def run(*, seconds: float, at_least: int) -> tuple[int, float]:
            return _count(lambda: (engine.infer(inputs) for _ in iter(int, 1)), seconds, at_least)

    run(seconds=0.0, at_least=WARM_UP)
    batches, took = run(seconds=seconds, at_least=WARM_UP)
    each = took / batches
    flops = n * tile_flops(artifact.card.network, y, x)
    return {
        "batches": batches,
        "ms_a_batch": round(1e3 * each, 4),
        "mpx_per_s": round(n * geometry.core_side(y) * geometry.core_side(x) / each / 1e6, 3),
        "tflops": round(flops / each / 1e12, 6),
        "raw_in_bytes_out": engine.open_bytes(FORM),
    }


def _stream(
    engine: CheckedEngine, raw: Any, *, gain: Any, offset: Any, seconds: float, at_least: int
) -> tuple[int, float]:
    start, sent = time.perf_counter(), 0

    def batches() -> Iterator[Any]:
        nonlocal sent
        while sent < at_least or time.perf_counter() - start < seconds:
            sent += 1
            yield raw

    with engine.reserved():
        done = sum(1 for _ in engine.stream(batches(), FORM, gain=gain, offset=offset))
    return done, time.perf_counter() - start


def _count(make: Callable[[], Iterator[Any]], seconds: float, at_least: int) -> tuple[int, float]:
    start, done = time.perf_counter(), 0
    for _ in make():
        done += 1
        if done >= at_least and time.perf_counter() - start >= seconds:
            break
    return done, time.perf_counter() - start


def time_torch(checkpoint: Path, artifact: Artifact, raw: Any, *, half: bool, seconds: float) -> dict[str, Any]:
    """Return the rate of PyTorch on the GPU, channels last, as one CUDA graph: the network alone, nothing copied."""
    import torch

    from unet_deploy.training.checkpoint import load_checkpoint

    model: Any = load_checkpoint(checkpoint)[0].cuda().to(memory_format=torch.channels_last)
    model = model.half() if half else model
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    inputs = torch.from_numpy(normalised(artifact, raw)).cuda().to(memory_format=torch.channels_last)
    inputs = inputs.half() if half else inputs
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            model(inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            model(inputs)

    def replay() -> Iterator[None]:
        while True:
            graph.replay()
            torch.cuda.synchronize()
            yield None

    batches, took = _count(replay, seconds, WARM_UP)
    n, _, y, x = raw.shape
    g = artifact.card.geometry
    return {
        "batches": batches,
        "ms_a_batch": round(1e3 * took / batches, 4),
        "mpx_per_s": round(n * g.core_side(y) * g.core_side(x) * batches / took / 1e6, 3),
        "tflops": round(n * tile_flops(artifact.card.network, y, x) * batches / took / 1e12, 3),
        "versions": {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())},
    }


def fast_folder() -> Path | None:
    """Return a folder in main memory, where there is one."""
    folder = Path("/dev/shm")  # noqa: S108  # folders of our own are made in it
    return folder if os.access(folder, os.W_OK) else None


def peak_of(gpu: str | None, precision: str) -> float | None:
    """Return the dense TFLOP/s of a GPU by its driver's name for it; None if it is not in the table.

    >>> peak_of("NVIDIA H100 80GB HBM3", "fp16"), peak_of("NVIDIA H100 PCIe", "fp16"), peak_of("NVIDIA Old", "fp16")
    (989, 756, None)
    """
    name = next((known for known in PEAKS if gpu is not None and known in gpu), None)
    return None if name is None else PEAKS[name].get(precision)
