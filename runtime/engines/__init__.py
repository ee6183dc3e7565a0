"""Engines: what runs the network. One module each; the checks they share are in `base`."""

from __future__ import annotations

import re

from unet_deploy.errors import DeviceError, UnknownNameError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import CheckedEngine, Engine, EngineDescription

__all__ = ["CheckedEngine", "Engine", "EngineDescription", "open_engine", "parse_device"]


def parse_device(device: str) -> tuple[str, int]:
    """Return kind and index of a device name: auto, cpu, cuda or cuda:i.

    Raises
    ------
    UnknownNameError
        If it is none of these.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)|(?:cuda:([0-9]{1,4}))", device)
    if match is None:
        raise UnknownNameError.of_unknown_name("device", device, ("auto", "cpu", "cuda", "cuda:0"))
    return match[1] or "cuda", int(match[2] or 0)


def open_engine(artifact: Artifact, *, device: str = "auto", threads: int = 0) -> CheckedEngine:
    """Open the engine for `device` and replay the artifact's test tensor on it.

    Parameters
    ----------
    artifact
        A checked artifact.
    device
        auto, cpu, cuda or cuda:i. What is asked for by name is used, or is an error.
    threads
        Threads within one operator on the CPU; 0 leaves it to the engine.

    Raises
    ------
    UnknownNameError
        If `device` is no device name.
    DeviceError
        If no engine of this release runs on it.
    MissingDependencyError
        If the engine's package is not installed.
    TestTensorError
        If the device does not reproduce the test tensor.
    """
    kind, _ = parse_device(device)
    if kind == "cuda":
        raise DeviceError(
            f"device {device} was asked for, and this release has no engine for it",
            "engines: onnxruntime-cpu",
            fix="--device cpu",
        )
    from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine

    engine = OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=threads)
    return CheckedEngine(engine, artifact.card).open()
