"""Imports point one way, and each heavy dependency has one home (DESIGN section 3).

1. ``cli → training, exporters, runtime → base`` where base is everything else directly in ``unet_deploy``.
2. ``training`` and ``runtime`` never import each other; ``exporters`` may import both.
3. A package that is not ours is imported only where `HOMES` says, even lazily or for types only.

The rule is a function of a module's name and text, so that the tests below can show that it catches what it should.
"""

from __future__ import annotations

import ast
import re
import sys
from fnmatch import fnmatchcase
from typing import Any

import pytest

PARTS = ("cli", "training", "exporters", "runtime")
MAY_IMPORT: dict[str, set[str]] = {
    "base": {"base"},
    "runtime": {"base", "runtime"},
    "training": {"base", "training"},
    "exporters": {"base", "training", "runtime", "exporters"},
    "cli": {"base", "training", "runtime", "exporters", "cli"},
}

ENGINES = "unet_deploy.runtime.engines"
HOMES: dict[str, tuple[tuple[str, ...], str]] = {
    # package: (modules that may import it, why there)
    "numpy": (("*",), "arrays are everywhere; errors and geometry are held to integers by a test of their own"),
    "torch": (("unet_deploy.training*", "unet_deploy.exporters*"), "a machine that segments has no torch"),
    "scipy": (
        ("unet_deploy.metrics*", "unet_deploy.training.weight_map", "unet_deploy.runtime._instance_blocks"),
        "comes with the extras 'evaluate', 'train' and 'instances'",
    ),
    "skimage": (
        ("unet_deploy.training*", "unet_deploy.cli._image_files"),
        "reads image files; comes with the extras 'train' and 'evaluate'",
    ),
    "tifffile": (
        ("unet_deploy.training.image_files", "unet_deploy.cli._image_files", "unet_deploy.runtime._tiff"),
        "reads TIFF page by page, and as a volume; comes with scikit-image and the extra 'tiff'",
    ),
    "PIL": (
        ("unet_deploy.cli._evaluation_report",),
        "writes words on a picture; comes with scikit-image",
    ),
    "onnx": (
        (
            "unet_deploy.exporters*",
            "unet_deploy.runtime.artifact",
            "unet_deploy.runtime.composition",
            f"{ENGINES}.tensorrt_graph",  # finds what TensorRT would read wrongly
        ),
        "writes a graph; reads one at one seam; composes one for an engine",
    ),
    "google": (("unet_deploy.runtime.artifact",), "protobuf's own exception is what onnx raises for a damaged file"),
    "onnxruntime": (
        (f"{ENGINES}.onnxruntime*", "unet_deploy.exporters.int8"),
        "one engine, one module, through which parity is checked too; its own quantiser",
    ),
    "openvino": ((f"{ENGINES}.openvino*",), "one engine, one module"),
    "tensorrt": ((f"{ENGINES}.tensorrt*", "unet_deploy.exporters.tensorrt*"), "runs a plan; builds one"),
    "tensorrt_rtx": ((f"{ENGINES}.tensorrt*", "unet_deploy.exporters.tensorrt*"), "runs a plan; builds one"),
    "cuda": ((f"{ENGINES}.tensorrt*",), "streams and pinned memory belong to the engine that uses them"),
    "zarr": (
        (
            "unet_deploy.runtime._opened_volume",  # opens what is read
            "unet_deploy.runtime.output",  # creates what is written
            "unet_deploy.runtime._chunk_guard",  # stands between a chunk and its decoder
            "unet_deploy.runtime._chunk_store",  # and between a file and its chunk
            "unet_deploy.runtime._remote_store",  # and between a server and its chunks
            "unet_deploy.runtime._instance_output",  # creates and writes the ids of objects
            "unet_deploy.cli.demo",  # makes a volume to segment
            "unet_deploy.training.image_files",  # reads annotated images
        ),
        "volumes are read and written in few places, so that bounds and errors are kept in few places",
    ),
    "obstore": (("unet_deploy.runtime._remote",), "talks to servers; comes with the extra 'remote'"),
    "numcodecs": (
        (
            "unet_deploy.runtime._chunk_guard",  # decodes behind the guard
            "unet_deploy.runtime.diagnosis",  # tells which codecs work
            "unet_deploy.runtime.output",  # says how what is written is compressed
            "unet_deploy.runtime.chunk_writer",  # compresses it
        ),
        "codecs are where untrusted bytes are inflated",
    ),
    "pyarrow": (("unet_deploy.runtime.block_table",), "writes Parquet; comes with the extra 'parquet'"),
    "yaml": (("unet_deploy.exporters.foreign_files",), "reads a bioimage.io description; comes with dask"),
    "dask": (
        ("unet_deploy.runtime.dask_client", "unet_deploy.runtime.dask_array"),
        "blocks are scheduled in one place",
    ),
    "distributed": (
        ("unet_deploy.runtime.scheduling", "unet_deploy.runtime.dask_client"),
        "blocks are scheduled in one place",
    ),
    "typer": (("unet_deploy.cli*",), "the library knows no command line"),
    "rich": (("unet_deploy.cli*",), "the library prints nothing"),
}

INTEGERS_ONLY = ("unet_deploy.errors", "unet_deploy.geometry")


def part_of(name: str) -> str:
    """Return which part of the package a dotted name of ours belongs to."""
    if name == "unet_deploy.__main__":
        return "cli"
    second = [*name.split("."), ""][1]
    return second if second in PARTS else "base"


def imported_names(tree: ast.AST) -> list[tuple[int, str]]:
    """Return line and dotted name of everything a module imports, however deep inside, literal dynamic imports too."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, alias.name) for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                found += [(node.lineno, "." * level + f"{module or ''}.{alias.name}") for alias in names]
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target)), *_]
            ):
                if name in {"import_module", "__import__"}:
                    found.append((node.lineno, target))
    return found


def violations(name: str, text: str) -> list[str]:
    """Return what the module called `name` imports against the rules."""
    problems: list[str] = []
    for line, target in imported_names(ast.parse(text)):
        top = target.split(".")[0]
        where = f"{name}:{line} imports {target}"
        if target.startswith("."):
            problems.append(f"{where}: relative")
        elif top in PARTS:
            problems.append(f"{where}: the bare name is a second copy of unet_deploy.{top}")
        elif top == "unet_deploy":
            if part_of(target) not in MAY_IMPORT[part_of(name)]:
                problems.append(f"{where}: {part_of(name)} may not import {part_of(target)}")
        elif top in sys.stdlib_module_names:
            continue
        elif top not in HOMES:
            problems.append(f"{where}: {top} has no home in HOMES")
        elif not any(fnmatchcase(name, pattern) for pattern in HOMES[top][0]) or name in INTEGERS_ONLY:
            problems.append(f"{where}: the home of {top} is {', '.join(HOMES[top][0])}")
    return problems


def test_imports_point_one_way(module: Any) -> None:
    assert violations(module.name, module.text) == []


def test_enough_is_seen(modules: list[Any]) -> None:
    by_part = [part_of(module.name) for module in modules]
    assert len(modules) >= 20
    assert set(by_part) == {"base", *PARTS}
    assert sum(len(imported_names(module.tree)) for module in modules) >= 100


def test_the_heavy_packages_are_imported_somewhere(modules: list[Any]) -> None:
    seen = {target.split(".")[0] for module in modules for _, target in imported_names(module.tree)}
    assert {"torch", "onnx", "onnxruntime", "zarr", "distributed", "typer"} <= seen


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("unet_deploy.runtime.plan", "import unet_deploy.training", "runtime may not import training"),
        ("unet_deploy.runtime.plan", "from unet_deploy import training", "runtime may not import training"),
        (
            "unet_deploy.runtime.plan",
            "from unet_deploy.exporters.onnx import export",
            "may not import exporters",
        ),
        (
            "unet_deploy.training.loop",
            "def f():\n    from unet_deploy.runtime import segment",
            "may not import runtime",
        ),
        ("unet_deploy.card", "from unet_deploy.runtime.plan import plan", "base may not import runtime"),
        ("unet_deploy.runtime", "import unet_deploy.cli", "runtime may not import cli"),
        ("unet_deploy.geometry", "import numpy", "the home of numpy"),
        ("unet_deploy.runtime.plan", "import zarr.core", "the home of zarr"),
        ("unet_deploy.runtime.execute", "import torch", "the home of torch"),
        ("unet_deploy.exporters.parity", "import onnxruntime as ort", "the home of onnxruntime"),
        ("unet_deploy.runtime.engines.fake", "import onnxruntime", "the home of onnxruntime"),
        ("unet_deploy.runtime.progress", "from rich.progress import Progress", "the home of rich"),
        ("unet_deploy.runtime.plan", "import importlib\nimportlib.import_module('dask.array')", "the home of dask"),
        ("unet_deploy.runtime.plan", "if TYPE_CHECKING:\n    import distributed", "the home of distributed"),
        ("unet_deploy.runtime.plan", "from . import volume", "relative"),
        ("unet_deploy.runtime.plan", "from ..errors import UsageError", "relative"),
        ("unet_deploy.cli.segment", "import runtime", "second copy of unet_deploy.runtime"),
        ("unet_deploy.runtime.plan", "import requests", "requests has no home"),
    ],
)
def test_a_planted_violation_is_caught(name: str, text: str, problem: str) -> None:
    (found,) = violations(name, text)
    assert problem in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unet_deploy.cli.export", "from unet_deploy.exporters import export"),
        ("unet_deploy.__main__", "from unet_deploy.cli import main"),
        ("unet_deploy.exporters.parity", "import torch\nimport unet_deploy.runtime\nimport unet_deploy.training"),
        ("unet_deploy.runtime.engines.onnxruntime_cpu", "import onnxruntime"),
        ("unet_deploy.runtime.dask_client", "import json, dask\nfrom distributed import Client"),
        ("unet_deploy.runtime.plan", "import unet_deploy\nfrom unet_deploy.geometry import Geometry"),
    ],
)
def test_a_right_import_is_let_through(name: str, text: str) -> None:
    assert violations(name, text) == []


def test_every_home_is_lived_in(modules: list[Any]) -> None:
    """A permission that nobody uses is a leftover, unless the design names what is to come."""
    to_come = {"tensorrt", "tensorrt_rtx"}  # imported by name: one code for both
    to_come |= {"scipy"}  # of the metrics
    leftovers = [
        f"{package}: {pattern}"
        for package, (patterns, _) in HOMES.items()
        if package not in to_come
        for pattern in patterns
        if not any(
            fnmatchcase(module.name, pattern) and target.split(".")[0] == package
            for module in modules
            for _, target in imported_names(module.tree)
        )
    ]
    assert leftovers == []


def test_every_module_says_what_it_is(module: Any) -> None:
    docstring = ast.get_docstring(module.tree)
    assert docstring is not None
    assert re.match(r"[A-Z`'\"].*[.:?]$", docstring.splitlines()[0]), docstring.splitlines()[0]


def test_every_module_with_code_postpones_annotations(module: Any) -> None:
    code = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
    if any(isinstance(node, code) for node in ast.walk(module.tree)):
        imported = [target for _, target in imported_names(module.tree)]
        assert "__future__.annotations" in imported
