"""Which engine runs a network: asked for by name, or the first of a measured order that works.

1. `ENGINES` says which exist and what each runs on; `ORDERS` says which to try first, and why.
2. What is asked for by name, device or engine, is used, or is an error that says what is missing.
3. Otherwise engines are tried in order. One is taken if its package is installed, it opens the model, and it reproduces
   the test tensor; of every other one the verdict is kept, and becomes part of the provenance.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unet_deploy.errors import (
    DeviceError,
    MissingDependencyError,
    ModelError,
    RequirementError,
    UnetDeployError,
    UnknownNameError,
    UsageError,
)
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import CheckedEngine, Engine, Verdict
from unet_deploy.runtime.tolerances import TOLERANCES

logger = logging.getLogger(__name__)

Maker = Callable[[Artifact, int], Engine]


def _onnxruntime_cpu(artifact: Artifact, threads: int) -> Engine:
    from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine

    return OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=threads)


def _openvino(artifact: Artifact, threads: int) -> Engine:
    from unet_deploy.runtime.engines.openvino import OpenvinoEngine

    return OpenvinoEngine(artifact.data, precision=artifact.card.precision, threads=threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """An engine's name, the kind of device it runs on, and its maker, which imports its package."""

    name: str
    device: str
    make: Maker


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Engines in the order to try them, and the measurement that this order comes from."""

    names: tuple[str, ...]
    why: str


ENGINES: tuple[EngineKind, ...] = (
    EngineKind(name="onnxruntime-cpu", device="cpu", make=_onnxruntime_cpu),
    EngineKind(name="openvino", device="cpu", make=_openvino),
)
_FLOAT = Order(names=("onnxruntime-cpu", "openvino"), why="what the README's figures were measured with")
ORDERS: dict[str, Order] = {
    "fp32": _FLOAT,
    "fp16": _FLOAT,
    "int8": Order(names=("openvino", "onnxruntime-cpu"), why="the same file took 0.54 to 0.69 of onnxruntime's time"),
}
"""By the card's precision."""


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


def candidates(device: str, engine: str | None = None, *, precision: str = "fp32") -> tuple[EngineKind, ...]:
    """Return the engines to try for a device and perhaps an engine's name, in order.

    Raises
    ------
    UnknownNameError
        If either is no name.
    UsageError
        If the engine does not run on the device.
    DeviceError
        If no engine of this release runs on the device.
    """
    kind, _ = parse_device(device)
    known = {item.name: item for item in ENGINES}
    if engine is not None:
        if engine not in known:
            raise UnknownNameError.of_unknown_name("engine", engine, known)
        if kind not in ("auto", known[engine].device):
            raise UsageError(
                f"engine {engine} runs on {known[engine].device}, and device {device} was asked for",
                fix=f"--device {known[engine].device}, or leave --engine out",
            )
        return (known[engine],)
    names = ORDERS[precision].names
    found = tuple(known[name] for name in names if kind in ("auto", known[name].device))
    if not found:
        raise DeviceError(
            f"device {device} was asked for, and this release has no engine for it",
            f"engines: {', '.join(f'{item.name} ({item.device})' for item in ENGINES)}",
            fix="--device cpu",
        )
    return found


def open_engine(
    artifact: Artifact, *, device: str = "auto", engine: str | None = None, threads: int = 0
) -> CheckedEngine:
    """Open an engine for `device` and replay the artifact's test tensor on it.

    Parameters
    ----------
    artifact
        A checked artifact.
    device
        auto, cpu, cuda or cuda:i. What is asked for by name is used, or is an error.
    engine
        An engine's name, to insist on it; None takes the first of the device's engines, by measured speed, that is
        installed, opens the model and passes the test tensor. ``describe().choice`` says what was found about each.
    threads
        Threads within one operator on the CPU; 0 leaves it to the engine.

    Raises
    ------
    UsageError
        If `device` or `engine` is no name, or the engine does not run on the device.
    DeviceError
        If no engine of this release runs on the device, or the engine cannot be used on this machine.
    MissingDependencyError
        If the engine's package is not installed.
    ModelError
        If the engine cannot load the model, or does not reproduce the test tensor.
    """
    precision = artifact.card.precision
    return choose(candidates(device, engine, precision=precision), artifact, threads=threads)


def choose(kinds: Sequence[EngineKind], artifact: Artifact, *, threads: int = 0) -> CheckedEngine:
    """Return the first engine that works, open; if it is the only candidate, its error is the answer."""
    failures: list[tuple[str, UnetDeployError]] = []
    for index, kind in enumerate(kinds):
        try:
            opened = _open(kind, artifact, threads=threads)
        except (RequirementError, ModelError) as error:
            if len(kinds) == 1:
                raise
            failures.append((kind.name, error))
            level = logging.INFO if isinstance(error, MissingDependencyError) else logging.WARNING
            logger.log(level, "engine %s passed over: %s", kind.name, _verdict(error))
            continue
        order = ORDERS[artifact.card.precision]
        taken = "asked for" if len(kinds) == 1 else f"first of those that work ({order.why})"
        opened.choice = (
            *(Verdict(engine=name, verdict=_verdict(error)) for name, error in failures),
            Verdict(engine=kind.name, verdict=taken, is_taken=True),
            *(Verdict(engine=k.name, verdict=f"not tried: {kind.name} comes first") for k in kinds[index + 1 :]),
        )
        logger.info("engine %s taken: %s", kind.name, taken)
        return opened
    raise _none_works(failures)


def _open(kind: EngineKind, artifact: Artifact, *, threads: int) -> CheckedEngine:
    precision = artifact.card.precision
    if (kind.name, precision) not in TOLERANCES:
        ran = [known for name, known in TOLERANCES if name == kind.name]
        raise DeviceError(
            f"{kind.name} has not been shown to run {precision} models right",
            f"it runs: {', '.join(ran)}; model: {artifact.card.name}",
            fix="leave --engine out, or export the model in another precision",
        )
    return CheckedEngine(kind.make(artifact, threads), artifact.card).open()


def _verdict(error: UnetDeployError) -> str:
    if isinstance(error, MissingDependencyError):
        return f"not installed ({error.fix})"
    return "; ".join([error.headline, *error.details[:1]])


def _none_works(failures: Sequence[tuple[str, UnetDeployError]]) -> UnetDeployError:
    """Return the most telling failure, with the others among its details; that a package is missing tells least."""
    name, told = min(failures, key=lambda item: isinstance(item[1], MissingDependencyError))
    others = [f"{other}: {_verdict(error)}" for other, error in failures if other != name]
    return type(told)(told.headline, *told.details, *others, fix=told.fix)
