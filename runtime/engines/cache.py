"""The engines of a process: one for each model and device, opened once however many blocks it serves.

A request may leave the engine open. The first process to open it decides, and `settle_engine` puts the name into the
request: workers then use the same engine or fail, so that no two blocks of one run come from different ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import CheckedEngine, Engine, EngineDescription, open_engine
from unet_deploy.runtime.engines.symmetries import SymmetricEngine, TileEngine
from unet_deploy.runtime.timeline import span

EngineFactory = Callable[[Artifact], Engine]
MAX_ENGINES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """Which engine a worker is to open. A `factory` of the caller's own takes the place of `device` and `engine`.

    `batch_shape` is what most batches will be, for engines that are built for one. With `tta` the result is the mean
    over turned and mirrored inputs; the engine that is kept open is the same.
    """

    artifact: Artifact
    device: str = "auto"
    engine: str | None = None
    threads: int = 0
    batch_shape: tuple[int, int, int, int] | None = None
    factory: EngineFactory | None = None
    tta: bool = False


Key = tuple[Any, ...]


@dataclass(slots=True)
class _EngineCache:
    """The engines of this process, the most recently used last, and the names that open requests came to."""

    engines: dict[Key, CheckedEngine] = field(default_factory=dict)
    settled: dict[Key, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, request: EngineRequest) -> CheckedEngine:
        with self.lock:
            known = self.settle(request)
            engine = self.engines.pop(_key(known), None)
            if engine is None:
                while len(self.engines) >= MAX_ENGINES:  # a dropped engine closes when its last user lets go
                    self.engines.pop(next(iter(self.engines)))
                engine = _open(known)
                if known.factory is None and known.engine is None:
                    self.settled[_key(known)] = engine.describe().engine
                    known = self.settle(known)
            self.engines[_key(known)] = engine
            return engine

    def settle(self, request: EngineRequest) -> EngineRequest:
        name = self.settled.get(_key(request))
        return request if name is None else replace(request, engine=name)

    def drop(self, request: EngineRequest) -> None:
        with self.lock:
            self.engines.pop(_key(self.settle(request)), None)
            if request.factory is None:  # the next run chooses anew
                self.settled.pop(_key(replace(request, engine=None)), None)

    def drop_all(self, artifact: Artifact) -> None:
        with self.lock:
            for known in (self.engines, self.settled):
                for key in [key for key in known if key[0] == artifact.sha256]:
                    known.pop(key)


_CACHE = _EngineCache()


def get_engine(request: EngineRequest) -> TileEngine:
    """Return this process's engine for the request, opening it and replaying the test tensor the first time."""
    engine = _CACHE.get(request)
    return SymmetricEngine(engine) if request.tta else engine


def settle_engine(request: EngineRequest) -> tuple[EngineRequest, EngineDescription]:
    """Open this process's engine; return the request with that engine's name, for workers, and its description."""
    description = get_engine(request).describe()
    name = request.engine if request.factory is not None else description.engine
    return replace(request, engine=name), description


def drop_engine(request: EngineRequest) -> None:
    """Let go of this process's engine for the request."""
    _CACHE.drop(request)


def drop_engines(artifact: Artifact) -> None:
    """Let go of all of this process's engines for a model."""
    _CACHE.drop_all(artifact)


def _key(request: EngineRequest) -> Key:
    return (
        request.artifact.sha256,
        request.device,
        request.engine,
        request.threads,
        request.batch_shape,
        request.factory,
    )


def _open(request: EngineRequest) -> CheckedEngine:
    with span("open engine"):
        return _open_now(request)


def _open_now(request: EngineRequest) -> CheckedEngine:
    if request.factory is not None:
        return CheckedEngine(request.factory(request.artifact), request.artifact.card).open()
    return open_engine(
        request.artifact,
        device=request.device,
        engine=request.engine,
        threads=request.threads,
        batch_shape=request.batch_shape,
    )
