"""Plans that were built on this machine, kept so that each is built once.

1. An entry is a folder: the plan and its signed sidecar (`runtime.engine_plan`). Its name is two hashes, of what was
   asked for (artifact, flavour, profiles, flags, form) and of where (TensorRT's version, GPU, driver).
2. If an entry of both is there and sound, it is taken. If only the other half differs, the log says what does, the plan
   is built anew, and what it replaces is removed. Plans for another GPU stay: a machine may have two.
3. An entry is made beside the others and renamed, so that it is whole or not there; of two processes that build the
   same one, the second takes what the first left.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from unet_deploy.errors import DeviceError, ModelError
from unet_deploy.runtime._private_files import read_private, user_data_folder, write_private
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_plan import (
    EnginePlan,
    Flag,
    Flavour,
    PlanManifest,
    Profile,
    load_engine_plan,
    write_engine_plan,
)
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.device_facts import DeviceFacts
from unet_deploy.runtime.engines.tensorrt_build import (
    build_plan,
    complete_flags,
    import_tensorrt,
    known_capabilities,
    require_version,
)
from unet_deploy.runtime.planned import PlannedArtifact, take_plan

logger = logging.getLogger(__name__)

PLAN_NAME = "plan.engine"
MAX_TIMING_BYTES = 256 * 2**20
_ABANDONED_S = 24 * 3600
_BUILDING = ".building-"
_MISSING = object()


def get_plan(
    artifact: Artifact,
    *,
    flavour: Flavour,
    profiles: Sequence[Profile],
    form: ByteForm | None = None,
    device: DeviceFacts | None = None,
    flags: Mapping[str, Flag] | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = logger.info,
    trt: Any = None,
) -> EnginePlan:
    """Return a plan of an artifact: the one in the cache, or one that is built and put there.

    Parameters
    ----------
    artifact
        A checked artifact; int8 only in TensorRT's own form. One that is a plan already is what is returned.
    flavour
        Which TensorRT builds and runs it.
    profiles
        Which batches (n, c, y, x) it is to take.
    form
        If it is to begin at raw pixels.
    device
        The GPU that will run it; TensorRT-RTX may do without.
    flags
        Of `tensorrt_build.DEFAULT_FLAGS`, those that are to be otherwise.
    folder
        Where the cache is, and the key it is signed with; None is ``plans`` in the user's data folder.
    say
        Told what takes long.
    trt
        TensorRT's module; imported if None.

    Raises
    ------
    MissingDependencyError, DeviceError, NotAnArtifactError, UsageError
        As of `tensorrt_build.build_plan`; DeviceError also if nothing can be kept in the folder.
    UnsafeModelError
        If the user's key could be another's.
    """
    trt = import_tensorrt(flavour) if trt is None else trt
    version = require_version(trt, flavour)
    if isinstance(artifact, PlannedArtifact):
        return take_plan(artifact, flavour=flavour, version=version, form=form, device=device)
    own = _flags_of_device(trt, device) if flavour == "tensorrt-rtx" and device is not None else {}
    complete = complete_flags(flavour, {**own, **(flags or {})})
    asked = {
        "artifact": artifact.sha256,
        "flavour": flavour,
        "profiles": [[*p.minimum, *p.optimum, *p.maximum] for p in profiles],
        "flags": complete,
        "form": None if form is None else [form.dtype, *form.kinds],
    }
    where = _describe(version, device)
    cache = _open_cache(folder)
    capability = None if device is None else device.compute_capability
    entry = f"{_hash(asked)}-{_hash([where, capability])}"
    found = cache.load(entry)
    if found is not None:
        return found
    say(
        f"building a {flavour} plan of {artifact.source}: it is kept in {cache.folder}"
    )  # a caller may refuse by raising
    stale = cache.warn_of_stale(entry, where, artifact)
    timing = cache.folder / f"timing-{_hash(where)}.cache"
    onnx_bytes = artifact.data if form is None else _compose(artifact, form)
    built = build_plan(
        onnx_bytes,
        flavour=flavour,
        profiles=profiles,
        flags=complete,
        timing_cache=cache.read_timing(timing),
        trt=trt,
    )
    manifest = PlanManifest(
        flavour=flavour,
        version=built.version,
        plan_sha256=hashlib.sha256(built.data).hexdigest(),
        plan_bytes=len(built.data),
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        precision=artifact.card.precision,
        compute_capabilities=built.compute_capabilities or (() if capability is None else (capability,)),
        gpu=None if device is None else device.name,
        driver=None if device is None else device.driver,
        profiles=tuple(profiles),
        flags=complete,
        form=form,
    )
    say(f"built in {built.seconds:.1f} s, {len(built.data) / 1e6:.1f} MB")
    plan = EnginePlan(data=built.data, manifest=manifest, card=artifact.card, source=str(cache.folder / entry))
    try:
        if built.timing_cache:
            write_private(timing, built.timing_cache)
        return cache.put(entry, plan, replaces=stale)
    except OSError as error:  # a disk that is full costs the next run the time to build again, and nothing else
        logger.warning("the plan cannot be kept in %s, the next run builds it again: %s", cache.folder, error)
        return plan


def _open_cache(folder: Path | None) -> _Cache:
    try:
        own = user_data_folder() if folder is None else folder
        return _Cache(own / "plans" if folder is None else folder, key_folder=own)
    except (OSError, RuntimeError) as error:  # read only; or no home, as in some containers
        raise DeviceError(
            "there is no folder for TensorRT's plans",
            f"{type(error).__name__}: {error}",
            fix="let HOME be a folder that you can write to, or use another engine (--engine onnxruntime-cuda)",
        ) from error


class _Cache:
    """A folder of entries that belongs to the user."""

    def __init__(self, folder: Path, *, key_folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._key_folder = key_folder

    def load(self, entry: str) -> EnginePlan | None:
        """Return an entry, None if there is none, or none that is sound."""
        path = self.folder / entry / PLAN_NAME
        if not path.exists():
            return None
        try:
            return load_engine_plan(path, key_folder=self._key_folder)
        except ModelError as error:
            logger.warning("the cached plan %s is not taken, and built anew: %s", path, error.headline)
            return None

    def warn_of_stale(self, entry: str, where: Mapping[str, str], artifact: Artifact) -> list[Path]:
        """Name what differs of each plan of the same request; return those that a new one takes the place of."""
        replaced: list[Path] = []
        for other, manifest in self._others(entry):
            before = _describe_manifest(manifest)
            differing = [f"{name}: {before[name]} → {where[name]}" for name in where if before[name] != where[name]]
            logger.warning(
                "the cached %s plan of %s was built for something else, a new one is built (%s)",
                manifest.flavour,
                artifact.source,
                "; ".join(differing),
            )
            if before["GPU"] == where["GPU"]:
                replaced.append(other)
        return replaced

    def _others(self, entry: str) -> Iterator[tuple[Path, PlanManifest]]:
        request = entry.partition("-")[0]
        for other in sorted(self.folder.glob(f"{request}-*")):
            if other.name != entry:
                with suppress(ModelError):  # one that is not sound is not worth a word: it was never taken
                    yield other, load_engine_plan(other / PLAN_NAME, key_folder=self._key_folder).manifest

    def put(self, entry: str, plan: EnginePlan, *, replaces: Sequence[Path]) -> EnginePlan:
        """Put a plan into the cache in one move; return it, or what another process put there meanwhile."""
        self._remove_abandoned()
        made = self.folder / f"{_BUILDING}{secrets.token_hex(8)}"
        made.mkdir(mode=0o700)
        target = self.folder / entry
        try:
            write_engine_plan(made / PLAN_NAME, plan, key_folder=self._key_folder)
            if not _rename(made, target):
                theirs = self.load(entry)
                if theirs is not None:
                    return theirs
                away = self.folder / f"{_BUILDING}{secrets.token_hex(8)}"  # what was not sound
                if _rename(target, away):
                    shutil.rmtree(away, ignore_errors=True)
                _rename(made, target)  # if a third process was faster, its plan is as good
        finally:
            shutil.rmtree(made, ignore_errors=True)
        for other in replaces:
            shutil.rmtree(other, ignore_errors=True)
        return plan

    def _remove_abandoned(self) -> None:
        """Remove what killed builds left."""
        for folder in self.folder.glob(f"{_BUILDING}*"):
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def read_timing(self, file: Path) -> bytes:
        """Return what earlier builds on this GPU measured."""
        try:
            return read_private(file, largest=MAX_TIMING_BYTES, is_trusted=False, fix=f"delete {file}")
        except (OSError, ModelError):  # it only saves time
            return b""


def _rename(source: Path, target: Path) -> bool:
    """Rename a folder; return False if there is already one."""
    try:
        source.rename(target)
    except OSError:
        if target.exists():
            return False
        raise
    return True


def _describe(version: str, device: DeviceFacts | None) -> dict[str, str]:
    return {
        "TensorRT": version,
        "GPU": "none" if device is None else device.name,
        "driver": "none" if device is None else device.driver,
    }


def _describe_manifest(manifest: PlanManifest) -> dict[str, str]:
    return {"TensorRT": manifest.version, "GPU": manifest.gpu or "none", "driver": manifest.driver or "none"}


def _flags_of_device(trt: Any, device: DeviceFacts) -> dict[str, Flag]:
    """Let a plan of TensorRT-RTX be for this GPU alone, where it has a name: 7.5 is not among the default ones."""
    capability = device.compute_capability
    return {"compute_capabilities": capability} if capability in known_capabilities(trt) else {}


def _compose(artifact: Artifact, form: ByteForm) -> bytes:
    from unet_deploy.runtime.composition import compose_bytes

    return compose_bytes(artifact.data, artifact.card, form)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]
