"""From an ONNX graph to a plan, by TensorRT 11 or TensorRT-RTX: one builder, since both have the same interface.

1. The graph comes as bytes, never as a path: TensorRT's parser follows links to files elsewhere.
2. What TensorRT would read wrongly is refused before it sees it: unsigned or shifted int8, 32 bit quantised biases.
3. The network is strongly typed: it computes in the types of the graph. TF32 is off unless asked for.
4. Optimisation profiles say which batches the plan takes. TensorRT times kernels on the GPU at hand, and a timing cache
   keeps what it found; TensorRT-RTX compiles ahead for a list of compute capabilities and needs no GPU.
5. TensorRT says why it failed only in its log: the log is kept, and becomes the error's details.
"""

from __future__ import annotations

import importlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unet_deploy.errors import DeviceError, MissingDependencyError, NotAnArtifactError, UnknownNameError, UsageError
from unet_deploy.runtime.engine_plan import Flag, Flavour, Profile
from unet_deploy.runtime.engines.tensorrt_graph import require_buildable

logger = logging.getLogger(__name__)

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST: dict[Flavour, tuple[int, int]] = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 0)}
"""Before them the precision of a layer was a wish, and not what the graph says."""
DEFAULT_FLAGS: dict[str, Flag] = {
    "tf32": False,
    "workspace_mib": 0,
    "hardware_compatibility": "none",
    "compute_capabilities": "",
}
"""All that can be asked of a build: 19 bit sums, scratch memory (0: all there is), plans for other GPUs of the kind
(TensorRT), and which GPUs at all (TensorRT-RTX; '' is `RTX_CAPABILITIES`)."""
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""What TensorRT-RTX builds for when nothing is asked; asked for by name, so that the manifest can say it."""
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A plan, and what became known when it was built; `timing_cache` is None for TensorRT-RTX."""

    data: bytes = field(repr=False)
    version: str
    compute_capabilities: tuple[str, ...]
    seconds: float
    layers: int
    timing_cache: bytes | None = field(default=None, repr=False)


def build_plan(
    onnx_bytes: bytes,
    *,
    flavour: Flavour,
    profiles: Sequence[Profile],
    flags: Mapping[str, Flag] | None = None,
    timing_cache: bytes = b"",
    trt: Any = None,
) -> BuiltPlan:
    """Build a plan.

    Parameters
    ----------
    onnx_bytes
        The graph: opset 18, one input whose batches are (n, c, y, x), perhaps others of fixed shape.
    flavour
        Which TensorRT is to build it, and so which will run it.
    profiles
        Which batches it is to take; at least one.
    flags
        Of `DEFAULT_FLAGS`, those that are to be otherwise.
    timing_cache
        What an earlier build on this GPU found; TensorRT only.
    trt
        The module; imported if None.

    Raises
    ------
    MissingDependencyError, DeviceError
        If TensorRT is not installed, cannot be loaded, is too old, or cannot build on this machine.
    NotAnArtifactError
        If it would read the graph wrongly, or cannot parse it.
    UnknownNameError, UsageError
        If a flag is none, or none of this flavour's.
    """
    assert profiles, "no profile to build for"
    asked = complete_flags(flavour, flags or {})
    require_buildable(onnx_bytes, flavour)
    trt = import_tensorrt(flavour) if trt is None else trt
    version = require_version(trt, flavour)
    log = open_log(trt)
    start = time.perf_counter()
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, version))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_bytes):
        said = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise NotAnArtifactError(
            f"{flavour} {version} cannot parse the graph", *_first_lines(said), fix="export the model again"
        )
    config = builder.create_builder_config()
    capabilities = _configure(trt, config, flavour, asked)
    _add_profiles(builder, network, config, profiles, flavour)
    cache = None
    if flavour == "tensorrt":
        cache = config.create_timing_cache(timing_cache)
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(
            f"{flavour} {version} cannot build the plan on this machine",
            *_first_lines(log.problems),
            fix=_fix_of_build(flavour),
        )
    return BuiltPlan(
        data=bytes(plan),
        version=version,
        compute_capabilities=capabilities,
        seconds=time.perf_counter() - start,
        layers=network.num_layers,
        timing_cache=None if cache is None else bytes(config.get_timing_cache().serialize()),
    )


def import_tensorrt(flavour: Flavour) -> Any:
    """Return the module of a flavour.

    Raises
    ------
    MissingDependencyError, DeviceError
        If it is not installed; if it is, and cannot be loaded.
    """
    name = MODULES[flavour]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingDependencyError.of_extra(name, extra=flavour, purpose=f"building for {flavour}") from error
    except (ImportError, OSError, RuntimeError) as error:  # a library of the system or of the driver is missing
        raise DeviceError(
            f"{flavour} is installed and cannot be loaded",
            f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}",
            fix=f"install it again, with a driver that fits: pip install --force-reinstall 'unet-deploy[{flavour}]'",
        ) from error


def require_version(trt: Any, flavour: Flavour) -> str:
    """Return the module's version.

    Raises
    ------
    DeviceError
        If it is too old to compute in the types of the graph.
    """
    version = str(trt.__version__)
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST[flavour]:
        oldest = ".".join(map(str, OLDEST[flavour]))
        raise DeviceError(
            f"{flavour} {version} is too old: {oldest} or newer was expected",
            "before, it took the precision of a layer for a wish",
            fix=f"pip install --upgrade 'unet-deploy[{flavour}]'",
        )
    return version


def require_flags(flavour: Flavour, flags: Mapping[str, Flag]) -> None:
    """Say before any work whether a build can be asked for; raises what `build_plan` does of module and flags."""
    complete, trt = complete_flags(flavour, flags), import_tensorrt(flavour)
    require_version(trt, flavour)
    if flavour == "tensorrt-rtx":
        find_capabilities(trt, complete)


def complete_flags(flavour: Flavour, flags: Mapping[str, Flag]) -> dict[str, Flag]:
    """Return all flags of a build: those given, and the defaults of the others.

    >>> complete_flags("tensorrt-rtx", {"compute_capabilities": "8.9"})["compute_capabilities"]
    '8.9'

    Raises
    ------
    UnknownNameError, UsageError
        If a flag, or its value, is none, or none of this flavour's.
    """
    for name in flags:
        if name not in DEFAULT_FLAGS:
            raise UnknownNameError.of_unknown_name("flag of a TensorRT build", name, DEFAULT_FLAGS)
    complete = {**DEFAULT_FLAGS, **flags}
    if flavour == "tensorrt-rtx":
        complete["compute_capabilities"] = complete["compute_capabilities"] or ",".join(RTX_CAPABILITIES)
    level = str(complete["hardware_compatibility"])
    if level not in HARDWARE_COMPATIBILITY:
        raise UnknownNameError.of_unknown_name("hardware compatibility", level, HARDWARE_COMPATIBILITY)
    foreign = "hardware_compatibility" if flavour == "tensorrt-rtx" else "compute_capabilities"
    if complete[foreign] != DEFAULT_FLAGS[foreign]:
        own = "compute_capabilities" if flavour == "tensorrt-rtx" else "hardware_compatibility"
        words = {name: name.replace("_", " ") for name in (foreign, own)}
        raise UsageError(
            f"{flavour} has no {words[foreign]}: {complete[foreign]} came",
            f"which GPUs its plans are for is said by {words[own]}",
            fix=f"leave it out, or use --{'hardware-compatibility' if own == 'hardware_compatibility' else 'gpu-arch'}",
        )
    return complete


def _network_flags(trt: Any, version: str) -> int:
    """Return what makes a network strongly typed: from 11 on, and in RTX, all are."""
    if not version.startswith("10."):
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _configure(trt: Any, config: Any, flavour: Flavour, flags: Mapping[str, Flag]) -> tuple[str, ...]:
    """Set what was asked for; return the compute capabilities the plan is built for, where that is up to us."""
    if flags["tf32"]:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if flags["workspace_mib"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(flags["workspace_mib"]) << 20)
    if flavour == "tensorrt":
        config.hardware_compatibility_level = {
            "none": trt.HardwareCompatibilityLevel.NONE,
            "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }[str(flags["hardware_compatibility"])]
        return ()
    wanted = find_capabilities(trt, flags)
    config.num_compute_capabilities = len(wanted)
    for index, value in enumerate(wanted.values()):
        config.set_compute_capability(value, index)
    return tuple(wanted)


def find_capabilities(trt: Any, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Return the compute capabilities that a TensorRT-RTX plan is to be for, by name.

    Raises
    ------
    UnknownNameError
        If it has no such.
    """
    known = known_capabilities(trt)
    wanted = [name.strip() for name in str(flags["compute_capabilities"]).split(",")]
    for name in wanted:
        if name not in known:
            raise UnknownNameError.of_unknown_name("compute capability of TensorRT-RTX", name, known)
    return {name: known[name] for name in wanted}


def known_capabilities(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that TensorRT-RTX can build for, by name."""
    return {_dotted(name): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}


def _dotted(name: str) -> str:
    """Return a compute capability as people write it: SM120 is 12.0."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"


def _add_profiles(builder: Any, network: Any, config: Any, profiles: Sequence[Profile], flavour: Flavour) -> None:
    name = network.get_input(0).name  # the others, of a composed graph, have one shape
    for profile in profiles:
        made = builder.create_optimization_profile()
        made.set_shape(name, profile.minimum, profile.optimum, profile.maximum)
        if config.add_optimization_profile(made) < 0:
            raise UsageError(
                f"{flavour} takes no profile from {profile.minimum} to {profile.maximum}",
                f"fastest at {profile.optimum}; the graph's input is {name} {tuple(network.get_input(0).shape)}",
                fix="leave the profile out: the planner's tiles make one",
            )


def _fix_of_build(flavour: Flavour) -> str:
    if flavour == "tensorrt":
        return "build on the machine with the GPU that will run it, and look at what `unet-deploy doctor` says of it"
    return "a smaller --batch, or another --gpu-arch; if that does not help, report this with the lines above"


_LOGS: dict[Any, Any] = {}


def open_log(trt: Any) -> Any:
    """Return the one log of a TensorRT module, emptied: each module takes one a process, and keeps the first."""
    if trt not in _LOGS:
        _LOGS[trt] = _make_log(trt)
    log = _LOGS[trt]
    log.problems.clear()
    return log


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # a class of a module that is chosen at run time
        """Keeps what went wrong, and passes everything on to Python's logging."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            is_problem = int(severity) <= int(trt.ILogger.Severity.ERROR)
            if is_problem:
                self.problems.append(message)
            level = logging.DEBUG if int(severity) > int(trt.ILogger.Severity.WARNING) else logging.INFO
            logger.log(level, "%s", message)

    return Log()


def _first_lines(messages: Sequence[str]) -> list[str]:
    """Return what was said, each message in one line."""
    lines = [" ".join(message.split())[:300] for message in messages if message.strip()]
    return lines[:_SHOWN] or ["it gave no reason"]
