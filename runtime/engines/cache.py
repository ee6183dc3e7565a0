"""The engines of a process: one for each model and device, opened once however many blocks it serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import CheckedEngine, Engine, open_engine
from unet_deploy.runtime.engines.symmetries import SymmetricEngine, TileEngine

EngineFactory = Callable[[Artifact], Engine]
MAX_ENGINES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """Which engine a worker is to open. A `factory` of the caller's own takes the place of `device`.

    With `tta` its result is the mean over turned and mirrored inputs; the engine that is kept open is the same.
    """

    artifact: Artifact
    device: str = "auto"
    threads: int = 0
    factory: EngineFactory | None = None
    tta: bool = False


@dataclass(slots=True)
class _EngineCache:
    """The engines of this process, the most recently used last."""

    engines: dict[tuple[Any, ...], CheckedEngine] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, request: EngineRequest) -> CheckedEngine:
        key = (request.artifact.sha256, request.device, request.threads, request.factory)
        with self.lock:
            engine = self.engines.pop(key, None)
            if engine is None:
                while len(self.engines) >= MAX_ENGINES:  # a dropped engine closes when its last user lets go
                    self.engines.pop(next(iter(self.engines)))
                engine = _open(request)
            self.engines[key] = engine
            return engine

    def drop(self, request: EngineRequest) -> None:
        with self.lock:
            self.engines.pop((request.artifact.sha256, request.device, request.threads, request.factory), None)


_CACHE = _EngineCache()


def get_engine(request: EngineRequest) -> TileEngine:
    """Return this process's engine for the request, opening it and replaying the test tensor the first time."""
    engine = _CACHE.get(request)
    return SymmetricEngine(engine) if request.tta else engine


def drop_engine(request: EngineRequest) -> None:
    """Let go of this process's engine for the request."""
    _CACHE.drop(request)


def _open(request: EngineRequest) -> CheckedEngine:
    if request.factory is not None:
        return CheckedEngine(request.factory(request.artifact), request.artifact.card).open()
    return open_engine(request.artifact, device=request.device, threads=request.threads)
