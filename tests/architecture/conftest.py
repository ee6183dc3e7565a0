"""The source as the architecture tests see it: every module of the package, parsed, never imported."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SourceModule:
    """One module: its import name, its file, its text."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))


def _setuptools_settings() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings: dict[str, Any] = tomllib.load(file)["tool"]["setuptools"]
    return settings


def _modules_on_disk() -> list[SourceModule]:
    found: list[SourceModule] = []
    for package, folder in _setuptools_settings()["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            tail = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *tail)).removesuffix(".__init__")
            found.append(SourceModule(name, path))
    return sorted(found, key=lambda module: module.name)


MODULES = _modules_on_disk()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `module` once for each module of the package."""
    if "module" in metafunc.fixturenames:
        metafunc.parametrize("module", MODULES, ids=[module.name for module in MODULES])


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def modules() -> list[SourceModule]:
    return MODULES


@pytest.fixture(scope="session")
def setuptools_settings() -> dict[str, Any]:
    return _setuptools_settings()
