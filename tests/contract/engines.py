"""Every engine that the suite runs, each with a network to run; a new engine is one more entry of `KINDS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from tests.cuda_fake import FakeCudart
from tests.tensorrt_runtime_fake import FakeTensorrt, plan_maker
from unet_deploy.card import ModelCard, TestTensor
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import Flavour
from unet_deploy.runtime.engines import CheckedEngine, Engine
from unet_deploy.runtime.engines.base import Batch, EngineOptions
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine
from unet_deploy.runtime.engines.onnxruntime_cuda import OnnxruntimeCudaEngine
from unet_deploy.runtime.engines.onnxruntime_session import Provider
from unet_deploy.runtime.engines.openvino import OpenvinoEngine
from unet_deploy.runtime.engines.tensorrt import TensorrtEngine
from unet_deploy.runtime.tolerances import TOLERANCES

CPU_IN_PLACE_OF_CUDA = Provider(
    name="CPUExecutionProvider",
    memory="cpu",
    reinstall="pip install it again",
    config={"session.record_ep_graph_assignment_info": "1"},
    checks_nodes=True,
)


@dataclass(frozen=True, kw_only=True)
class EngineUnderTest:
    """An engine's maker and the card of the network it runs."""

    name: str
    card: ModelCard
    make: Callable[[], Engine]
    device: str = "cpu"

    def open(self, card: ModelCard | None = None) -> CheckedEngine:
        """Return the engine, open."""
        return CheckedEngine(self.make(), card or self.card).open()

    def same(self, came: Batch, expected: Batch) -> None:
        """Require that two ways of computing the same agree, up to the engine's own rounding."""
        limit = TOLERANCES[self.name, self.card.precision].limit(float(np.abs(expected).max()))
        np.testing.assert_allclose(came, expected, rtol=0, atol=limit, strict=True)

    def batch(self, n: int, cells_y: int, cells_x: int, *, seed: int = 0) -> Batch:
        """Return noise for a core of that many divisors; whole numbers, which every engine takes exactly."""
        g, channels = self.card.geometry, self.card.network.in_channels
        y, x = (g.tile_side(cells * g.divisor) for cells in (cells_y, cells_x))
        return np.random.default_rng(seed).integers(-9, 10, (n, channels, y, x)).astype(np.float32)


def _fake(request: pytest.FixtureRequest) -> EngineUnderTest:
    """Return the integer fake with a test tensor of its own making, so that it is replayed like any other's."""
    artifact: Artifact = request.getfixturevalue("fake_artifact")(depth=2, classes=3, in_channels=2)
    network = artifact.card.network
    g = network.geometry
    image = np.random.default_rng(1).integers(0, 256, (1, 2, g.smallest_tile, g.smallest_tile), dtype=np.uint8)
    tensor = TestTensor(image=image, logits=FakeEngine(network).infer(image.astype(np.float32)))
    return EngineUnderTest(
        name="fake", card=replace(artifact.card, test_tensor=tensor), make=lambda: FakeEngine(network)
    )


def _onnxruntime_cpu(request: pytest.FixtureRequest) -> EngineUnderTest:
    artifact: Artifact = request.getfixturevalue("tiny_artifact")
    return EngineUnderTest(
        name="onnxruntime-cpu",
        card=artifact.card,
        make=lambda: OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=1),
    )


def _onnxruntime_cuda(request: pytest.FixtureRequest) -> EngineUnderTest:
    """Return the engine for a GPU with all it does, buffers and checks, on the provider that every machine has."""
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    artifact: Artifact = request.getfixturevalue("tiny_artifact")
    return EngineUnderTest(
        name="onnxruntime-cuda",
        card=artifact.card,
        make=lambda: OnnxruntimeCudaEngine(
            artifact, EngineOptions(threads=1), provider=CPU_IN_PLACE_OF_CUDA, packages=lambda: {"onnxruntime-gpu": "0"}
        ),
        device="cuda:0",
    )


def _openvino(request: pytest.FixtureRequest) -> EngineUnderTest:
    if importlib.util.find_spec("openvino") is None:  # imported by the engine only, which keeps its telemetry off
        pytest.skip("the extra 'openvino' is not installed")
    artifact: Artifact = request.getfixturevalue("tiny_artifact")
    return EngineUnderTest(
        name="openvino",
        card=artifact.card,
        make=lambda: OpenvinoEngine(artifact.data, precision=artifact.card.precision, threads=1),
    )


def _tensorrt(request: pytest.FixtureRequest, flavour: Flavour, *, seed: int, use_graphs: bool) -> EngineUnderTest:
    """Return the engine on a GPU that is made up: the network's own graph, in streams that take turns at random."""
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    artifact: Artifact = request.getfixturevalue("tiny_artifact")
    side = artifact.card.geometry.tile_side(6 * artifact.card.geometry.divisor)

    def make() -> Engine:
        cudart = FakeCudart(seed=seed)
        trt = FakeTensorrt(cudart, is_rtx=flavour == "tensorrt-rtx")
        return TensorrtEngine(
            artifact,
            EngineOptions(batch_shape=(4, 1, side, side)),
            flavour=flavour,
            get_plan=plan_maker(trt),
            modules=(trt, cudart),
            use_graphs=use_graphs,
        )

    return EngineUnderTest(name=flavour, card=artifact.card, make=make, device="cuda:0")


KINDS: dict[str, Callable[[pytest.FixtureRequest], EngineUnderTest]] = {
    "fake": _fake,
    "onnxruntime-cpu": _onnxruntime_cpu,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "openvino": _openvino,
    "tensorrt": partial(_tensorrt, flavour="tensorrt", seed=1, use_graphs=True),
    "tensorrt-rtx": partial(_tensorrt, flavour="tensorrt-rtx", seed=2, use_graphs=False),
}

ON_A_GPU = {"onnxruntime-cuda", "tensorrt", "tensorrt-rtx"}
"""Engines that ``tests/gpu`` runs the suite with, where there is a GPU."""
