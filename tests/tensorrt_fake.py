"""A TensorRT that builds nothing, and has exactly the names of the real one (tests/golden/tensorrt_api)."""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

API = Path(__file__).resolve().parent / "golden" / "tensorrt_api"
FILES = {"tensorrt": "tensorrt_11.4.json", "tensorrt-rtx": "tensorrt_rtx_1.7.1.json"}
PLAN = b"a plan of nothing"


def read_api(flavour: str) -> dict[str, Any]:
    """Return the names of a flavour's module, and of its classes."""
    api: dict[str, Any] = json.loads((API / FILES[flavour]).read_text(encoding="utf-8"))
    return api


class FakeTensorrt:
    """A module. `calls` is what was asked of it; `parses`, `builds` and `profile_index` decide how it answers."""

    def __init__(self, flavour: str = "tensorrt", version: str | None = None) -> None:
        api = read_api(flavour)
        self.classes: dict[str, list[str]] = api["classes"]
        self.__version__ = version or api["version"]
        self.calls: list[tuple[Any, ...]] = []
        self.parses, self.builds, self.profile_index = True, True, 0
        self.log: Any = None
        for name in ("BuilderFlag", "HardwareCompatibilityLevel", "MemoryPoolType"):
            members = [m for m in self.classes[name] if m.isupper() or "_" in m or m.endswith("32")]
            setattr(self, name, SimpleNamespace(**{m: f"{name}.{m}" for m in members}))
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

        class ILogger:
            Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)

        self.ILogger = ILogger

    def Builder(self, log: Any) -> Any:  # noqa: N802  # TensorRT's name
        """Return a builder."""
        self.log = log
        return _Object(
            self,
            "Builder",
            create_network=lambda flags: self._note("create_network", flags) or self._network(),
            create_builder_config=self._config,
            create_optimization_profile=self._profile,
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802
        """Return a parser."""
        return _Object(
            self,
            "OnnxParser",
            parse=lambda data: self._note("parse", type(data)) or self.parses,
            num_errors=0 if self.parses else 1,
            get_error=lambda _: SimpleNamespace(desc=lambda: "node 3\nhas no meaning"),
        )

    def _note(self, *call: Any) -> None:
        self.calls.append(call)

    def _network(self) -> Any:
        given = SimpleNamespace(name="image", shape=(-1, 1, -1, -1))
        return _Object(self, "INetworkDefinition", get_input=lambda _: given, num_layers=7)

    def _profile(self) -> Any:
        return _Object(self, "IOptimizationProfile", set_shape=lambda *shapes: self._note("set_shape", *shapes))

    def _config(self) -> Any:
        cache = _Object(self, "ITimingCache", serialize=lambda: b"what was measured")
        return _Object(
            self,
            "IBuilderConfig",
            add_optimization_profile=lambda _: self.profile_index,
            set_flag=lambda flag: self._note("set_flag", flag),
            clear_flag=lambda flag: self._note("clear_flag", flag),
            set_memory_pool_limit=lambda pool, size: self._note("set_memory_pool_limit", pool, size),
            create_timing_cache=lambda blob: self._note("create_timing_cache", blob) or cache,
            set_timing_cache=lambda _, ignore_mismatch: self._note("set_timing_cache", ignore_mismatch),
            get_timing_cache=lambda: cache,
        )

    def _build(self, network: Any, config: Any) -> bytes | None:
        if self.builds:
            return PLAN
        self.log.log(self.ILogger.Severity.VERBOSE, "so far so good")
        self.log.log(self.ILogger.Severity.ERROR, "no kernel\n  fits")
        return None


class _Object:
    """An object of a class of the module: it takes and gives only what the real class has."""

    def __init__(self, module: FakeTensorrt, name: str, **answers: Any) -> None:
        assert set(answers) <= set(module.classes[name]), set(answers) - set(module.classes[name])
        vars(self).update(answers, _module=module, _names=frozenset(module.classes[name]))

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self._names, f"the real one has no {name}"
        self._module.calls.append((name, value))
