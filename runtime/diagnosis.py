"""What a bug report needs to know of a machine: versions, devices, which engines work and why the others do not.

1. Versions are read from what is installed; nothing is imported for them, so that torch costs nothing here.
2. Engines are tried for real on the bundled network (`unet_deploy.runtime.survey`); the GPU is asked for meanwhile.
   TensorRT is tried if a plan of that network is there, and not built for: that takes minutes, and changes the cache.
3. What is installed badly is a problem with the commands that mend it, even where an engine happens to work.
4. The text is meant to be shown to strangers: folders, the user and the machine are taken out of every message.
"""

from __future__ import annotations

import getpass
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numcodecs

from unet_deploy import __version__
from unet_deploy.errors import UnetDeployError
from unet_deploy.runtime._zarr_metadata import V2_COMPRESSORS, V3_CODECS
from unet_deploy.runtime.artifact import Artifact, load_bundled_artifact
from unet_deploy.runtime.engines.choice import EngineKind
from unet_deploy.runtime.kept_costs import KeptCosts, count_costs
from unet_deploy.runtime.kept_plans import PlanCache, quick_kinds, read_plan_cache
from unet_deploy.runtime.machine import (
    Disk,
    Gpus,
    Memory,
    Processor,
    read_disks,
    read_gpus,
    read_memory,
    read_processor,
)
from unet_deploy.runtime.survey import (
    ORIGINS,
    EngineStatus,
    first_line,
    install_command,
    installed_versions,
    survey_engines,
)

BASE_PACKAGES = ("numpy", "zarr", "numcodecs", "dask", "distributed", "onnx", "protobuf", "typer", "rich")
OTHER_PACKAGES = (
    "tifffile",
    "scipy",
    "scikit-image",
    "cuda-bindings",
    "nvidia-cuda-runtime",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12",
)
ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)
"""Packages that all install into the folder ``onnxruntime``: the last one wins, and removing one breaks the others."""
_SHARED = "the packages share one folder: the last installed wins, and removing one takes the other's files along"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something installed wrongly: what, why it matters, and the commands that mend it."""

    headline: str
    detail: str
    fix: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """An installed torch, read from its files; `cuda` is the version it was built for, None for the CPU only."""

    version: str
    cuda: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything found; see the module. `packages` has None for what is not installed."""

    version: str
    python: str
    platform: str
    packages: Mapping[str, str | None]
    processor: Processor
    memory: Memory
    gpus: Gpus
    model: str
    engines: tuple[EngineStatus, ...]
    torch: Torch | None
    codecs: Mapping[str, str]
    disks: Mapping[str, Disk]
    plan_cache: PlanCache
    kept_costs: KeptCosts
    problems: tuple[Problem, ...]
    seconds: float

    @property
    def works(self) -> bool:
        """Whether some engine segments here."""
        return any(status.works for status in self.engines)

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "unet_deploy": self.version,
            "python": self.python,
            "platform": self.platform,
            "packages": dict(self.packages),
            "processor": asdict(self.processor),
            "memory": asdict(self.memory),
            "gpus": asdict(self.gpus),
            "model": self.model,
            "engines": [status.to_object() for status in self.engines],
            "torch": None if self.torch is None else asdict(self.torch),
            "codecs": dict(self.codecs),
            "disks": {name: asdict(disk) for name, disk in self.disks.items()},
            "plan_cache": asdict(self.plan_cache),
            "kept_costs": asdict(self.kept_costs),
            "problems": [asdict(problem) for problem in self.problems],
            "works": self.works,
            "seconds": self.seconds,
        }


def diagnose(*, kinds: Sequence[EngineKind] | None = None, artifact: Artifact | None = None) -> Diagnosis:
    """Look at this machine; nothing is changed, and nothing but a damaged installation of Python itself is raised.

    Parameters
    ----------
    kinds
        The engines to try; those of this release by default, TensorRT only with plans that are there.
    artifact
        The network to try them on; the bundled one if None.

    Examples
    --------
    >>> found = diagnose()
    >>> found.packages["numpy"] is None, found.codecs["zstd"]
    (False, 'works')
    """
    start = time.perf_counter()
    with ThreadPoolExecutor(max_workers=1) as pool:
        gpus = pool.submit(read_gpus)
        model, engines, problems = _try_engines(artifact, quick_kinds() if kinds is None else kinds)
    engine_packages = dict.fromkeys(name for origin in ORIGINS.values() for name in origin.packages)
    wanted = dict.fromkeys((*BASE_PACKAGES, *engine_packages, *ONNXRUNTIMES[2:], *OTHER_PACKAGES))
    installed = installed_versions([*wanted])
    problems = (*onnxruntime_problems(installed_versions(ONNXRUNTIMES)), *problems)
    clean, plan_cache = Cleaner(), read_plan_cache()
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}",
        platform=clean(platform.platform()),
        packages={
            name: installed.get(name)
            for name in wanted
            if name in installed or name in BASE_PACKAGES or name in engine_packages
        },
        processor=read_processor(),
        memory=read_memory(),
        gpus=replace(gpus.result(), note=clean(gpus.result().note)),
        model=model,
        engines=tuple(replace(status, reason=clean(status.reason), fix=clean(status.fix)) for status in engines),
        torch=read_torch(),
        codecs={name: clean(answer) for name, answer in try_codecs().items()},
        disks=read_disks(),
        plan_cache=replace(plan_cache, folder=clean(plan_cache.folder)),
        kept_costs=count_costs(),
        problems=tuple(replace(p, headline=clean(p.headline), detail=clean(p.detail)) for p in problems),
        seconds=time.perf_counter() - start,
    )


def onnxruntime_problems(installed: Mapping[str, str]) -> tuple[Problem, ...]:
    """Return what is wrong with the packages of onnxruntime that are installed, by name and version.

    >>> onnxruntime_problems({"onnxruntime": "1.31.1"})
    ()
    >>> onnxruntime_problems({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})[0].fix[0]
    'pip uninstall -y onnxruntime onnxruntime-gpu'
    """
    names = [name for name in ONNXRUNTIMES if name in installed]
    if len(names) < 2:
        return ()
    commands = {"onnxruntime": install_command("cpu", "onnxruntime")}
    commands["onnxruntime-gpu"] = install_command("gpu", "'onnxruntime-gpu[cuda,cudnn]'")
    wanted = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else "onnxruntime"
    return (
        Problem(
            headline=f"{' and '.join(f'{name} {installed[name]}' for name in names)} are installed at once",
            detail=_SHARED,
            fix=(f"pip uninstall -y {' '.join(names)}", commands[wanted]),
        ),
    )


def read_torch() -> Torch | None:
    """Return the installed torch, without importing it; None if there is none."""
    try:
        found = distribution("torch")
    except PackageNotFoundError:
        return None
    try:
        text = Path(str(found.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except OSError:
        text = ""
    cuda = re.search(r"^cuda(?:\s*:[^=]+)?\s*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return Torch(version=found.version, cuda=cuda[1] if cuda else None)


def try_codecs() -> dict[str, str]:
    """Return what became of each codec that a volume may be compressed with: "works", or the reason why not."""
    names = {*V2_COMPRESSORS, *V3_CODECS} - {"bytes", "sharding_indexed", "transpose"}  # those three are zarr's own
    return {name: _try_codec(name) for name in sorted(names)}


def _try_codec(name: str) -> str:
    data = bytes(range(64)) * 4
    try:
        codec = numcodecs.get_codec({"id": name})
        same = bytes(codec.decode(codec.encode(data))) == data
    except Exception as error:  # a codec's library may be missing or broken in any way
        return f"{type(error).__name__}: {first_line(error)}"
    return "works" if same else "gives back other bytes"


def _try_engines(
    artifact: Artifact | None, kinds: Sequence[EngineKind]
) -> tuple[str, tuple[EngineStatus, ...], tuple[Problem, ...]]:
    """Return the network that was tried, what became of each engine, and what is wrong with the network itself."""
    try:
        tried = artifact or load_bundled_artifact()
    except UnetDeployError as error:
        problem = Problem(headline=error.headline, detail="; ".join(error.details), fix=(error.fix,))
        return "none could be read", (), (problem,)
    return f"{tried.card.name} ({tried.card.precision})", survey_engines(tried, kinds=kinds), ()


class Cleaner:
    """Takes folders, the user's name and the machine's out of a message; calling it returns the rest."""

    def __init__(self) -> None:
        self._folders = [("<python>", sys.prefix), ("<tmp>", tempfile.gettempdir())]
        self._folders += [*_folder("~", Path.home), *_folder("<here>", Path.cwd)]
        self._folders.sort(key=lambda item: -len(item[1]))  # the home holds the others, more often than not
        self._names = [("<user>", name) for name in _user()]
        self._names += [("<host>", name) for name in {platform.node(), platform.node().split(".")[0]}]

    def __call__(self, text: str) -> str:
        """Return the text without them."""
        for word, folder in self._folders:
            if len(folder) > 1:  # not the root
                text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w-])", word, text, flags=re.IGNORECASE)
        for word, name in self._names:
            if len(name) > 2 and name != "localhost":
                text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", word, text)
        return text


def _folder(word: str, find: Callable[[], Path]) -> list[tuple[str, str]]:
    try:
        return [(word, str(find()))]
    except (RuntimeError, OSError):  # no home, as in some containers; a current folder that was deleted
        return []


def _user() -> list[str]:
    try:
        return [getpass.getuser()]
    except (OSError, KeyError, ImportError):  # a number without a name, as in some containers
        return []
