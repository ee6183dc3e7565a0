"""What the code asks of TensorRT exists in TensorRT 11.4 and TensorRT-RTX 1.7, and nothing of it was removed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unet_deploy.runtime.engines as engines
from tests.golden.tensorrt_api.make import public_names
from tests.tensorrt_fake import FILES, read_api

SOURCES = sorted(Path(engines.__file__).parent.glob("tensorrt*.py"))
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "IRuntimeCache",
}
"""Asked for only where the flavour is tensorrt-rtx; TensorRT's Python has no such names."""
REMOVED = {
    *("int8_calibrator", "set_calibration_profile", "quantization_flags", "algorithm_selector"),
    *(
        "set_output_type",
        "platform_has_fast_fp16",
        "platform_has_fast_int8",
        "IAlgorithmSelector",
        "algorithm_selector",
    ),
    *(
        "device_memory_size",
        "max_workspace_size",
        "build_engine",
        "build_cuda_engine",
        "execute_async_v2",
        "EXPLICIT_BATCH",
    ),
    *("get_binding_shape", "num_bindings", "create_execution_context_without_device_memory", "parse_from_file"),
}
"""By release 11, or never to be used: the parser that takes a path follows links."""


def chains(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Yield line and names of every ``trt.A.B``, ``self._trt.A.B``, and ``a.B`` where a was set to ``trt.A``."""
    aliases = {
        target.id: names
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and (names := _names_of(node.value, {}))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (names := _names_of(node, aliases)):
            yield node.lineno, names


def _names_of(node: ast.AST, aliases: dict[str, list[str]]) -> list[str]:
    """Return the names after the module's, none if it is not asked of the module."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, [])
    if not isinstance(node, ast.Attribute):
        return []
    value = node.value
    is_module = (isinstance(value, ast.Name) and value.id in ("trt", "_trt")) or (
        isinstance(value, ast.Attribute) and value.attr in ("trt", "_trt")
    )
    before = [] if is_module else _names_of(value, aliases)
    return [*before, node.attr] if is_module or before else []


def problems_of(text: str, apis: dict[str, dict[str, Any]]) -> list[str]:
    """Return what a module asks of TensorRT that is not there."""
    problems: list[str] = []
    tree = ast.parse(text)
    for line, names in chains(tree):
        for flavour, api in apis.items():
            first, *rest = names
            if flavour == "tensorrt" and first in RTX_ONLY:
                continue
            if first not in api["classes"] and first not in api["names"]:
                problems.append(f"{line}: {flavour} has no {first}")
            elif (
                rest
                and first in api["classes"]
                and not rest[0].startswith("__")
                and rest[0] not in api["classes"][first]
            ):
                problems.append(f"{line}: {flavour} has no {first}.{rest[0]}")
    problems += [
        f"{node.lineno}: {node.attr} was removed"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in REMOVED
    ]
    return problems


@pytest.fixture(scope="module")
def apis() -> dict[str, dict[str, Any]]:
    return {flavour: read_api(flavour) for flavour in FILES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_what_is_asked_for_is_there(source: Path, apis: dict[str, dict[str, Any]]) -> None:
    assert problems_of(source.read_text(encoding="utf-8"), apis) == []


def test_something_was_looked_at(apis: dict[str, dict[str, Any]]) -> None:
    assert {"tensorrt_build", "tensorrt_cache", "tensorrt_graph"} <= {source.stem for source in SOURCES}
    asked = {".".join(names) for s in SOURCES for _, names in chains(ast.parse(s.read_text(encoding="utf-8")))}
    assert {"Builder", "OnnxParser", "BuilderFlag.TF32", "HardwareCompatibilityLevel.AMPERE_PLUS"} <= asked
    assert [api["version"] for api in apis.values()] == ["11.4.0.106", "1.7.1.116"]
    assert all(len(api["classes"]) > 60 for api in apis.values())


def test_rtx_alone_has_what_is_said_to_be_its_own(apis: dict[str, dict[str, Any]]) -> None:
    assert set(apis["tensorrt-rtx"]["classes"]) >= RTX_ONLY
    assert not RTX_ONLY & (set(apis["tensorrt"]["classes"]) | set(apis["tensorrt"]["names"]))


def test_what_was_removed_is_not_there(apis: dict[str, dict[str, Any]]) -> None:
    flags = apis["tensorrt"]["classes"]["BuilderFlag"]
    assert not {"FP16", "INT8", "BF16", "FP8"} & set(flags)
    assert "TF32" in flags
    assert "int8_calibrator" not in apis["tensorrt"]["classes"]["IBuilderConfig"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "1: tensorrt has no BuilderFlag.FP16"),
        ("self._trt.IInt8Calibrator()", "1: tensorrt-rtx has no IInt8Calibrator"),
        ("parser.parse_from_file(path)", "1: parse_from_file was removed"),
        ("flags = trt.BuilderFlag\nflags.TF23", "2: tensorrt-rtx has no BuilderFlag.TF23"),
        ("trt.BuilderFlag.TF23", "1: tensorrt-rtx has no BuilderFlag.TF23"),
        ("trt.EngineValidity.MAYBE", "1: tensorrt-rtx has no EngineValidity.MAYBE"),
    ],
)
def test_a_module_that_asks_for_more_is_found(apis: dict[str, dict[str, Any]], text: str, told: str) -> None:
    assert told in problems_of(text, apis)


def test_the_names_of_rtx_are_those_installed(apis: dict[str, dict[str, Any]]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt-rtx' is not installed")
    known = apis["tensorrt-rtx"]
    if trt.__version__ != known["version"]:
        pytest.skip(f"the names are of {known['version']}, {trt.__version__} is installed")
    assert public_names(trt) == known
