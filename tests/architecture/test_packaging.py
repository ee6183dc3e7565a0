"""What the folders hold is what the wheel holds.

An editable install imports a sub-package that pyproject.toml does not list; the wheel silently leaves it out. The same
is true of a data file that no pattern names.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.resources
from pathlib import Path
from typing import Any

import pytest

NEEDS_TORCH = ("unet_deploy.training", "unet_deploy.exporters")


def _folder_of(package: str, package_dir: dict[str, str]) -> str:
    """Return the folder that setuptools maps a package to: the nearest mapped parent's, and the rest of the name."""
    parent = max((known for known in package_dir if f"{package}.".startswith(f"{known}.")), key=len)
    return "/".join([package_dir[parent], *package.removeprefix(parent).strip(".").split(".")]).rstrip("/")


def test_every_folder_with_code_is_shipped(root: Path, setuptools_settings: dict[str, Any]) -> None:
    on_disk = {
        ".".join((package, *init.parent.relative_to(root / folder).parts))
        for package, folder in setuptools_settings["package-dir"].items()
        for init in (root / folder).rglob("__init__.py")
    }
    assert set(setuptools_settings["packages"]) == on_disk
    assert len(on_disk) >= 7


def test_every_python_file_is_in_a_package(root: Path, setuptools_settings: dict[str, Any]) -> None:
    strays = [
        path.relative_to(root).as_posix()
        for folder in setuptools_settings["package-dir"].values()
        for path in (root / folder).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    assert strays == []


def test_every_data_file_is_shipped(root: Path, setuptools_settings: dict[str, Any]) -> None:
    package_dir: dict[str, str] = setuptools_settings["package-dir"]
    shipped = {
        path
        for package, patterns in setuptools_settings["package-data"].items()
        for pattern in patterns
        for path in (root / _folder_of(package, package_dir)).glob(pattern)
    }
    on_disk = {
        path
        for folder in package_dir.values()
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert {path.relative_to(root).as_posix() for path in on_disk - shipped} == set()
    assert root / "unet_deploy" / "py.typed" in shipped


def test_no_data_pattern_is_vain(root: Path, setuptools_settings: dict[str, Any]) -> None:
    vain = [
        f"{package}: {pattern}"
        for package, patterns in setuptools_settings["package-data"].items()
        for pattern in patterns
        if not list((root / _folder_of(package, setuptools_settings["package-dir"])).glob(pattern))
    ]
    assert vain == []


def test_data_files_are_found_by_import_name() -> None:
    assert importlib.resources.files("unet_deploy").joinpath("py.typed").is_file()


def test_docstring_examples(module: Any) -> None:
    # By import name: `pytest --doctest-modules runtime` would import a second copy named `runtime.x`.
    if module.name.startswith(NEEDS_TORCH):
        pytest.importorskip("torch", reason="the extra 'train' is not installed")
    results = doctest.testmod(importlib.import_module(module.name))
    assert results.failed == 0


def test_the_examples_are_seen(modules: list[Any]) -> None:
    assert sum(">>>" in module.text for module in modules) >= 1
