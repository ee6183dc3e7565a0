"""Which engine runs a network: asked for by name, or the first of an order that works.

1. `ENGINES` says which exist and what each runs on; `CUDA_ORDER` and `CPU_ORDERS` which to try first, and why. A GPU
   comes before the CPU.
2. What is asked for by name, device or engine, is used, or is an error that says what is missing.
3. Where there is no GPU, nothing of an engine for one is imported.
4. What was measured on this very machine (`engines.measured_order`) comes before an order that was measured elsewhere.
5. Otherwise engines are tried in order. One is taken if its package is installed, it opens the model, and it reproduces
   the test tensor; of every other one the verdict is kept, and becomes part of the provenance.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
from unet_deploy.runtime.engines.base import Engine, EngineOptions, Verdict
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.measured_order import order_as_measured
from unet_deploy.runtime.machine import Gpus, ask_driver
from unet_deploy.runtime.tolerances import TOLERANCES

logger = logging.getLogger(__name__)

Maker = Callable[[Artifact, EngineOptions], Engine]
NO_GPU = "no NVIDIA GPU can be used here"


def _onnxruntime_cpu(artifact: Artifact, options: EngineOptions) -> Engine:
    from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine

    return OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=options.threads)


def _openvino(artifact: Artifact, options: EngineOptions) -> Engine:
    from unet_deploy.runtime.engines.openvino import OpenvinoEngine

    return OpenvinoEngine(
        artifact.data,
        precision=artifact.card.precision,
        threads=options.threads,
        batch_shape=options.batch_shape,
    )


def _onnxruntime_cuda(artifact: Artifact, options: EngineOptions) -> Engine:
    from unet_deploy.runtime.engines.onnxruntime_cuda import OnnxruntimeCudaEngine

    return OnnxruntimeCudaEngine(artifact, options)


def _tensorrt(artifact: Artifact, options: EngineOptions) -> Engine:
    from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

    return TensorrtEngine(artifact, options, flavour="tensorrt")


def _tensorrt_rtx(artifact: Artifact, options: EngineOptions) -> Engine:
    from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

    return TensorrtEngine(artifact, options, flavour="tensorrt-rtx")


def on_gpu(make: Maker, *, packages: Sequence[str], extra: str, ask: Callable[[], Gpus] = ask_driver) -> Maker:
    """Return a maker that looks for the GPU first, and imports nothing where there is none.

    Parameters
    ----------
    make
        The maker.
    packages, extra
        Any of these packages brings the engine; the extra of ours that installs one.
    ask
        What tells which GPUs there are.

    Raises
    ------
    DeviceError
        When it is called: there is no driver, no GPU, or none of that index.
    """

    def make_on_gpu(artifact: Artifact, options: EngineOptions) -> Engine:
        gpus = ask()
        if not gpus.found:
            raise DeviceError(
                NO_GPU,
                gpus.note,
                _describe_package(packages, extra),
                fix="--device cpu; for the GPU, install its driver and see that nvidia-smi lists it",
            )
        if options.device_index >= len(gpus.found):
            there = ", ".join(f"cuda:{i} {gpu.name}" for i, gpu in enumerate(gpus.found))
            raise DeviceError(
                f"device cuda:{options.device_index} was asked for, and there is none of that number",
                f"there: {there}; GPUs that CUDA_VISIBLE_DEVICES hides do not count",
                fix="--device cuda:0",
            )
        return make(artifact, options)

    return make_on_gpu


def _describe_package(packages: Sequence[str], extra: str) -> str:
    """Return whether one of these is installed, or else the command that installs it."""
    for name in packages:
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)} is installed"
    return f"{packages[0]} is not installed either: pip install 'unet-deploy[{extra}]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """An engine's name, the kind of device it runs on, and its maker, which imports its package."""

    name: str
    device: str
    make: Maker


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Engines in the order to try them, and the reason for this order, measured where it could be."""

    names: tuple[str, ...]
    why: str


ENGINES: tuple[EngineKind, ...] = (
    EngineKind(name="onnxruntime-cpu", device="cpu", make=_onnxruntime_cpu),
    EngineKind(name="openvino", device="cpu", make=_openvino),
    EngineKind(
        name="onnxruntime-cuda",
        device="cuda",
        make=on_gpu(_onnxruntime_cuda, packages=("onnxruntime-gpu",), extra="gpu"),
    ),
    EngineKind(
        name="tensorrt-rtx",
        device="cuda",
        make=on_gpu(
            _tensorrt_rtx,
            packages=("tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx"),
            extra="tensorrt-rtx",
        ),
    ),
    EngineKind(
        name="tensorrt",
        device="cuda",
        make=on_gpu(_tensorrt, packages=("tensorrt-cu13", "tensorrt-cu12", "tensorrt"), extra="tensorrt"),
    ),
)
_CPU = ("openvino", "onnxruntime-cpu")
CUDA_ORDER = Order(
    names=("onnxruntime-cuda", "tensorrt-rtx", "tensorrt"),
    why="it starts at once, TensorRT builds its engine first; which is faster has not been measured",
)
CPU_ORDERS: dict[str, Order] = {
    "fp32": Order(names=_CPU, why="openvino takes 0.84 to 0.94 of onnxruntime-cpu's time"),
    "fp16": Order(names=_CPU, why="openvino takes 0.45 to 0.50 of onnxruntime-cpu's time"),
    "int8": Order(names=_CPU, why="openvino takes 0.50 to 0.73 of onnxruntime-cpu's time"),
}
"""By the card's precision; benchmarks/results/engines-width16.json and engines-width64.json."""


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
    orders = {"cpu": (CPU_ORDERS[precision],), "cuda": (CUDA_ORDER,), "auto": (CUDA_ORDER, CPU_ORDERS[precision])}
    return tuple(known[name] for order in orders[kind] for name in order.names)


def ordered_candidates(
    artifact: Artifact,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    costs_folder: Path | None = None,
) -> tuple[tuple[EngineKind, ...], dict[str, str]]:
    """Return the engines to try for an artifact in order, and the reason by kind of device where it was measured here.

    Parameters and exceptions as of `open_engine`.
    """
    kinds = candidates(device, engine, precision=artifact.card.precision)
    if len(kinds) == 1:
        return kinds, {}
    return order_as_measured(kinds, artifact, device=device, threads=threads, folder=costs_folder)


def open_engine(
    artifact: Artifact,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    batch_shape: tuple[int, int, int, int] | None = None,
    costs_folder: Path | None = None,
) -> CheckedEngine:
    """Open an engine for `device` and replay the artifact's test tensor on it.

    Parameters
    ----------
    artifact
        A checked artifact.
    device
        auto, cpu, cuda or cuda:i. What is asked for by name is used, or is an error. ``auto`` is the first GPU, or the
        CPU where there is none that can be used.
    engine
        An engine's name, to insist on it; None takes the first of the device's engines, in the order measured on this
        machine, else of `CUDA_ORDER` or `CPU_ORDERS`, that is installed, opens the model and passes the test tensor.
        ``describe().choice`` says what was found about each.
    threads
        Threads within one operator on the CPU; 0 leaves it to the engine.
    batch_shape
        The (n, c, y, x) that most batches will have, for engines that are built for one; None if it is not known.
    costs_folder
        Where is kept what was measured on this machine; None for the user's own folder.

    Raises
    ------
    UsageError
        If `device` or `engine` is no name, or the engine does not run on the device.
    DeviceError
        If there is no such device, or the engine cannot be used on this machine.
    MissingDependencyError
        If the engine's package is not installed.
    ModelError
        If the engine cannot load the model, or does not reproduce the test tensor.
    """
    _, index = parse_device(device)
    options = EngineOptions(threads=threads, device_index=index, batch_shape=batch_shape)
    from unet_deploy.runtime.planned import settle_engine_name  # which imports this package

    engine = settle_engine_name(artifact, engine, batch_shape)
    kinds, whys = ordered_candidates(artifact, device=device, engine=engine, threads=threads, costs_folder=costs_folder)
    return choose(kinds, artifact, options, whys=whys)


def choose(
    kinds: Sequence[EngineKind],
    artifact: Artifact,
    options: EngineOptions | None = None,
    *,
    whys: Mapping[str, str] | None = None,
) -> CheckedEngine:
    """Return the first engine that works, open; if it is the only candidate, its error is the answer.

    `whys` has the reason for the order, by kind of device, where it is not that of `CUDA_ORDER` and `CPU_ORDERS`.
    """
    options = options or EngineOptions()
    failures: list[tuple[str, UnetDeployError]] = []
    for index, kind in enumerate(kinds):
        try:
            opened = _open(kind, artifact, options)
        except (RequirementError, ModelError) as error:
            if len(kinds) == 1:
                raise
            failures.append((kind.name, error))
            is_usual = isinstance(error, MissingDependencyError) or error.headline == NO_GPU
            level = logging.INFO if is_usual else logging.WARNING
            logger.log(level, "engine %s passed over: %s", kind.name, _verdict(error))
            continue
        order = CUDA_ORDER if kind.device == "cuda" else CPU_ORDERS[artifact.card.precision]
        why = (whys or {}).get(kind.device, order.why)
        taken = "asked for" if len(kinds) == 1 else f"first of those that work ({why})"
        opened.choice = (
            *(Verdict(engine=name, verdict=_verdict(error)) for name, error in failures),
            Verdict(engine=kind.name, verdict=taken, is_taken=True),
            *(
                Verdict(engine=k.name, verdict=f"not tried: {kind.name} comes first", is_tried=False)
                for k in kinds[index + 1 :]
            ),
        )
        logger.info("engine %s taken: %s", kind.name, taken)
        return opened
    raise _none_works(failures)


def _open(kind: EngineKind, artifact: Artifact, options: EngineOptions) -> CheckedEngine:
    precision = artifact.card.precision
    if (kind.name, precision) not in TOLERANCES:
        ran = [known for name, known in TOLERANCES if name == kind.name]
        raise DeviceError(
            f"{kind.name} has not been shown to run {precision} models right",
            f"it runs: {', '.join(ran)}; model: {artifact.card.name}",
            fix="leave --engine out, or export the model in another precision",
        )
    return CheckedEngine(kind.make(artifact, options), artifact.card).open()


def _verdict(error: UnetDeployError) -> str:
    if isinstance(error, MissingDependencyError):
        return f"not installed ({error.fix})"
    return "; ".join([error.headline, *error.details[:1]])


def _none_works(failures: Sequence[tuple[str, UnetDeployError]]) -> UnetDeployError:
    """Return the most telling failure, with the others among its details.

    That a package is missing tells little, and that there is no GPU, unless that was asked for, least.
    """

    def rank(error: UnetDeployError) -> int:
        return 2 if error.headline == NO_GPU else int(isinstance(error, MissingDependencyError))

    _, told = min(failures, key=lambda failure: rank(failure[1]))
    others: dict[str, list[str]] = {}
    for name, error in failures:
        if _verdict(error) != _verdict(told):
            others.setdefault(_verdict(error), []).append(name)
    lines = [f"{', '.join(names)}: {verdict}" for verdict, names in others.items()]
    return type(told)(told.headline, *told.details, *lines, fix=told.fix)
