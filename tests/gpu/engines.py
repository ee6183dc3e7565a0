"""The engines of a real GPU, for the tests beside this; where there is none, they are skipped with the reason."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unet_deploy.errors import DeviceError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import Flavour
from unet_deploy.runtime.engines.base import Engine, EngineOptions
from unet_deploy.runtime.machine import ask_driver

PACKAGES = {
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
EXTRAS = {"onnxruntime-cuda": "gpu", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}


@dataclass(frozen=True, kw_only=True)
class GpuEngines:
    """Makers of one engine; plans are kept in `folder`, and built once for a shape."""

    name: str
    folder: Path

    def make(self, artifact: Artifact, batch_shape: tuple[int, int, int, int], **settings: Any) -> Engine:
        """Return the engine, for batches up to that shape."""
        options = EngineOptions(batch_shape=batch_shape)
        match self.name:
            case "onnxruntime-cuda":
                from unet_deploy.runtime.engines.onnxruntime_cuda import OnnxruntimeCudaEngine, cuda_provider

                return OnnxruntimeCudaEngine(artifact, options, provider=cuda_provider(0, **settings))
            case "tensorrt":
                return self._tensorrt(artifact, options, "tensorrt", **settings)
            case _:
                return self._tensorrt(artifact, options, "tensorrt-rtx", **settings)

    def factory(
        self, batch_shape: tuple[int, int, int, int], made: list[Engine] | None = None
    ) -> Callable[[Artifact], Engine]:
        """Return what `segment` takes as its engine_factory."""

        def make(artifact: Artifact) -> Engine:
            engine = self.make(artifact, batch_shape)
            if made is not None:
                made.append(engine)
            return engine

        return make

    def _tensorrt(self, artifact: Artifact, options: EngineOptions, flavour: Flavour, **settings: Any) -> Engine:
        from unet_deploy.runtime.engines.tensorrt import TensorrtEngine
        from unet_deploy.runtime.engines.tensorrt_cache import get_plan

        get = functools.partial(get_plan, folder=self.folder)
        return TensorrtEngine(artifact, options, flavour=flavour, get_plan=get, **settings)


def require_engine(name: str, folder: Path) -> GpuEngines:
    """Return the makers of an engine, or skip the test and say why."""
    gpus = ask_driver()
    if not gpus.found:
        pytest.skip(f"no NVIDIA GPU: {gpus.note}")
    installed = {distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions()}
    if not installed & set(PACKAGES[name]):
        pytest.skip(f"the extra '{EXTRAS[name]}' is not installed")
    if name != "onnxruntime-cuda":
        pytest.importorskip("cuda.bindings", reason=f"the extra '{EXTRAS[name]}' is not whole")
    if name == "tensorrt-rtx":
        from unet_deploy.runtime.engines.tensorrt import require_supported
        from unet_deploy.runtime.engines.tensorrt_cudart import import_cudart, read_device_facts

        try:
            require_supported(name, read_device_facts(import_cudart(extra=name), 0))
        except DeviceError as error:
            pytest.skip(error.headline)
    return GpuEngines(name=name, folder=folder)
