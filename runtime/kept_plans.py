"""TensorRT plans that this machine already has: what lies in their cache, and engines that take nothing else.

1. Building a plan takes seconds to minutes and leaves it in the cache. What only looks at a machine does neither.
2. So TensorRT is tried where a plan of the network for this very GPU, driver and version is there; else it says that
   it was not tried, and how to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from unet_deploy.errors import DeviceError
from unet_deploy.runtime._private_files import user_data_folder
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import EnginePlan, Flavour
from unet_deploy.runtime.engines.base import Engine, EngineOptions
from unet_deploy.runtime.engines.choice import ENGINES, EngineKind
from unet_deploy.runtime.machine import Gpus, ask_driver

NOT_TRIED = "installed, not tried"
"""How the reason of an engine begins that may well work."""
PLANS = "plans"
"""The cache's folder in the user's data folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCache:
    """The folder in which TensorRT plans are kept, how many, and their bytes with all else that lies there."""

    folder: str
    plans: int
    total_bytes: int


def read_plan_cache(folder: Path | None = None) -> PlanCache:
    """Return what lies in a folder of plans, which need not exist; the user's own by default."""
    if folder is None:
        try:
            folder = user_data_folder() / PLANS
        except RuntimeError:  # no home, as in some containers
            return PlanCache(folder="nowhere, since there is no home folder", plans=0, total_bytes=0)
    plans = total = 0
    with suppress(OSError):  # it may not be ours to look into, or change meanwhile
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                plans += path.suffix == ".engine"
                total += path.stat().st_size
    return PlanCache(folder=str(folder), plans=plans, total_bytes=total)


def quick_kinds(*, ask: Callable[[], Gpus] = ask_driver) -> tuple[EngineKind, ...]:
    """Return this release's engines, TensorRT's without the building of plans; `ask` says which GPUs there are."""
    return tuple(_without_building(kind, ask) if kind.name in get_args(Flavour) else kind for kind in ENGINES)


def _without_building(kind: EngineKind, ask: Callable[[], Gpus]) -> EngineKind:
    def make(artifact: Artifact, options: EngineOptions) -> Engine:
        if not ask().found:
            return kind.make(artifact, options)  # which says so, and imports nothing
        from unet_deploy.runtime.engines.tensorrt import TensorrtEngine

        flavour: Flavour = "tensorrt" if kind.name == "tensorrt" else "tensorrt-rtx"
        return TensorrtEngine(artifact, options, flavour=flavour, get_plan=take_kept_plan)

    return replace(kind, make=make)


def take_kept_plan(artifact: Artifact, *, flavour: Flavour, folder: Path | None = None, **request: Any) -> EnginePlan:
    """Return a plan that is in the cache; keywords as of `tensorrt_cache.get_plan`.

    Raises
    ------
    DeviceError
        If there is none; it is not built, and nothing is changed.
    """
    from unet_deploy.runtime.engines.tensorrt_cache import get_plan

    def refuse(_: str) -> None:
        raise DeviceError(
            f"{NOT_TRIED}: its plan of {artifact.card.name} is yet to be built",
            "the first run builds it, which takes seconds to minutes, and keeps it",
            fix=f"unet-deploy segment VOLUME.zarr --engine {flavour}",
        )

    if not (folder or user_data_folder() / PLANS).is_dir():
        refuse("")  # looking would make the folder
    return get_plan(artifact, flavour=flavour, folder=folder, say=refuse, **request)
