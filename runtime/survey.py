"""Which engines work on this machine, and why the others do not.

1. Each engine is opened on an artifact, and replays its test tensor on the device: what counts is the result.
2. An engine that cannot be opened is described by what it said: what is missing, and the command that installs it.
3. Nothing is raised. A survey is what one reads when nothing works.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, metadata
from typing import Any

import numpy as np

from unet_deploy.errors import TestTensorError, UnetDeployError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import EngineOptions
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.choice import ENGINES, EngineKind, choose
from unet_deploy.runtime.tolerances import TOLERANCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What brings an engine: any of `packages` will do; `extra` is ours that installs the first."""

    packages: tuple[str, ...]
    extra: str


ORIGINS: dict[str, Origin] = {
    "onnxruntime-cpu": Origin(packages=("onnxruntime", "onnxruntime-gpu"), extra="cpu"),
    "onnxruntime-cuda": Origin(packages=("onnxruntime-gpu",), extra="gpu"),
    "tensorrt": Origin(packages=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), extra="tensorrt"),
    "tensorrt-rtx": Origin(packages=("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"), extra="tensorrt-rtx"),
    "openvino": Origin(packages=("openvino",), extra="openvino"),
}
"""Every engine of the design, whether or not this release has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What became of one engine. `reason` and `fix` are empty where it works.

    `installed` has the versions of the packages that bring it; `seconds` is what opening it and replaying the test
    tensor took; `difference` and `limit` are of the test tensor's logits, None where it was not replayed. `is_wrong`
    says that it ran and computed something else, which is worse than not running.
    """

    name: str
    works: bool
    installed: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    seconds: float | None = None
    difference: float | None = None
    limit: float | None = None
    reason: str = ""
    fix: str = ""
    is_wrong: bool = False

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "engine": self.name,
            "works": self.works,
            "installed": dict(self.installed),
            "device": self.device or None,
            "seconds": self.seconds,
            "difference": self.difference,
            "limit": self.limit,
            "reason": self.reason or None,
            "fix": self.fix or None,
        }


def survey_engines(
    artifact: Artifact, *, kinds: Sequence[EngineKind] = ENGINES, threads: int = 0
) -> tuple[EngineStatus, ...]:
    """Open every engine on the artifact, replay its test tensor, and close it again; see the module.

    >>> from unet_deploy.runtime import load_bundled_artifact
    >>> statuses = survey_engines(load_bundled_artifact())
    >>> [status.name for status in statuses][:2], all(status.works or status.reason for status in statuses)
    (['onnxruntime-cpu', 'onnxruntime-cuda'], True)
    """
    ours = {kind.name: kind for kind in kinds}
    statuses: list[EngineStatus] = []
    for name in dict.fromkeys((*ORIGINS, *ours)):
        origin = ORIGINS.get(name)
        installed = {} if origin is None else installed_versions(origin.packages)
        if name not in ours:
            reason = "this release has no such engine"
            statuses.append(EngineStatus(name=name, works=False, installed=installed, reason=reason))
        elif origin is not None and not installed:
            statuses.append(
                EngineStatus(
                    name=name,
                    works=False,
                    reason=f"not installed: it needs {' or '.join(origin.packages)}",
                    fix=install_command(origin.extra, origin.packages[0]),
                )
            )
        else:
            statuses.append(_try(artifact, ours[name], installed, threads=threads))
    return tuple(statuses)


def describe_open_engine(
    engine: CheckedEngine, artifact: Artifact, *, installed: Mapping[str, str], seconds: float | None = None
) -> EngineStatus:
    """Return the status of an engine that was opened, and so has replayed the test tensor."""
    description, tensor = engine.describe(), artifact.card.test_tensor
    limit = None
    if tensor is not None:
        tolerance = TOLERANCES[description.engine, description.precision]
        limit = tolerance.limit(float(np.abs(tensor.logits).max()))
    return EngineStatus(
        name=description.engine,
        works=True,
        installed=installed,
        device=description.device,
        seconds=seconds,
        difference=None if tensor is None else engine.test_difference,
        limit=limit,
    )


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each package that is installed; nothing is imported."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:
            continue
    return found


def install_command(extra: str, package: str) -> str:
    """Return how to install a package: by our extra where this installation declares it, else by its own name.

    >>> install_command("cpu", "onnxruntime")
    "pip install 'unet-deploy[cpu]'"
    """
    try:
        extras = metadata("unet-deploy").get_all("Provides-Extra") or []
    except PackageNotFoundError:  # run from a checkout that was never installed
        extras = []
    return f"pip install 'unet-deploy[{extra}]'" if extra in extras else f"pip install {package}"


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    return (str(error).splitlines() or ["no reason given"])[0]


def _try(artifact: Artifact, kind: EngineKind, installed: Mapping[str, str], *, threads: int) -> EngineStatus:
    start = time.perf_counter()
    try:
        engine = choose((kind,), artifact, EngineOptions(threads=threads))
    except UnetDeployError as error:
        return EngineStatus(
            name=kind.name,
            works=False,
            installed=installed,
            reason="; ".join((error.headline, *error.details)),
            fix=error.fix,
            is_wrong=isinstance(error, TestTensorError),
        )
    except Exception as error:  # a package that is installed badly raises anything, even AttributeError
        packages = " ".join(installed)
        return EngineStatus(
            name=kind.name,
            works=False,
            installed=installed,
            reason=f"{type(error).__name__}: {first_line(error)}",
            fix=f"pip install --force-reinstall {packages}" if packages else "report this",
        )
    seconds = time.perf_counter() - start
    try:
        return describe_open_engine(engine, artifact, installed=installed, seconds=seconds)
    finally:
        engine.close()
