"""``unet-deploy export --target``, and a run with the plan that it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="parity is proved through onnxruntime: extra 'cpu'")

from tests.tiny import make_pixels, write_checkpoint, write_image
from unet_deploy.runtime.machine import ask_driver

Cli = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, for the key that plans are signed with; the current folder is the user's alone."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    tmp_path.chmod(0o700)
    return folder


def rows(text: str) -> dict[str, str]:
    return {line.split("  ")[0]: line.partition("  ")[2].strip() for line in text.splitlines() if "  " in line}


def test_a_plan_from_checkpoint_to_run(cli: Cli, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt-rtx' is not installed")
    write_checkpoint(tmp_path / "model.pt")
    write_image(tmp_path / "v.zarr", make_pixels((1, 90, 110)))
    outcome = cli("export", "model.pt", "--target", "tensorrt-rtx", "--precision", "fp16", "--gpu-arch", "8.9")
    assert outcome.code == 0, outcome.err
    shown = rows(outcome.out)
    name = "model.fp16.tensorrt-rtx.engine"
    assert shown["output"].startswith(f"{name}, ")
    assert shown["plan"].startswith("tensorrt-rtx 1.")
    assert " for compute capability 8.9, built in " in shown["plan"]
    assert shown["batches"] == "1 × 1 × 44 × 44 to 1 × 1 × 1064 × 1064, fastest at 1 × 1 × 1064 × 1064"
    assert "the plan itself ran" in shown["note"] or "what it was built from ran through" in shown["note"]
    assert shown["checked"].startswith("against fp32 on the procedural sample, ")
    assert shown["next"] == f"unet-deploy segment VOLUME.zarr --model {name}"
    assert (home / ".local" / "share" / "unet-deploy" / "signing.key").is_file() or (home / "AppData").is_dir()

    has_gpu = bool(ask_driver().found)
    if not has_gpu:
        for verb in ("segment", "plan"):
            refused = cli(verb, "v.zarr", "--model", name)
            assert refused.code == 5, refused.err
            assert "no NVIDIA GPU can be used here" in refused.err
    too_large = cli("segment", "v.zarr", "--model", name, "--batch", "2")
    assert too_large.code == 2
    assert "batches of 2 × 1 × " in too_large.err
    assert "was not built for them" in too_large.err

    seen = rows(cli("inspect", name).out)
    assert seen["plan"] == shown["plan"].partition(", built in")[0]
    assert (seen["precision"], seen["batches"]) == ("fp16", shown["batches"])
    assert json.loads(cli("inspect", name, "--json").out)["plan"]["plan_sha256"] == seen["sha256"]
    unchecked = cli("check", name)
    assert unchecked.code == 4
    assert "is an engine plan, an ONNX file was expected" in unchecked.err

    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "somebody"))
    for verb in (("inspect", name), ("evaluate", "v.zarr", "v.zarr", "--model", name)):
        assert "was not built by you on this machine" in cli(*verb).err
        assert "not built by you" not in cli(*verb, "--trust-engine").err
    stranger = cli("plan", "v.zarr", "--model", name)
    assert stranger.code == 4
    assert "error[unsafe-model]: " in stranger.err
    assert "was not built by you on this machine" in stranger.err
    assert "--trust-engine" in stranger.err
    trusted = cli("plan", "v.zarr", "--model", name, "--trust-engine")
    assert "unsafe-model" not in trusted.err
    assert has_gpu or trusted.code == 5


def test_facts_of_a_plan(cli: Cli, tmp_path: Path, home: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt-rtx' is not installed")
    write_checkpoint(tmp_path / "model.pt")
    outcome = cli("export", "model.pt", "--target", "onnx", "--target", "tensorrt-rtx", "--batch", "4", "--json")
    assert outcome.code == 0, outcome.err
    onnx_facts, facts = json.loads(outcome.out)["products"]
    assert (onnx_facts["target"], facts["target"]) == ("onnx", "tensorrt-rtx")
    assert "plan" not in onnx_facts
    assert facts["plan"]["onnx_sha256"] == onnx_facts["sha256"]
    assert facts["plan"]["profiles"][0]["maximum"][0] == 4
    assert facts["plan"]["flags"]["tf32"] is False
    assert facts["build_seconds"] > 0
    assert {row["engine"] for row in facts["parity"]} == {"onnxruntime-cpu"}


def test_openvino_has_its_own_rows(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    write_checkpoint(tmp_path / "model.pt")
    outcome = cli("export", "model.pt", "--target", "openvino")
    assert outcome.code == 0, outcome.err
    checked = [line.partition("  ")[2].strip() for line in outcome.out.splitlines() if line.startswith("checked")]
    assert [line.split()[3] for line in checked] == ["onnxruntime-cpu", "openvino"]
    assert [path.name for path in sorted(tmp_path.glob("model*"))] == ["model.onnx", "model.pt"]


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (("--target", "tensort"), 2, "unknown target: 'tensort'"),
        (("--target", "tensorrt-rtx", "--hardware-compatibility", "ampere_plus"), 2, "has no hardware compatibility"),
        (
            ("--target", "tensorrt-rtx", "--hardware-compatibility", "amper"),
            2,
            "unknown hardware compatibility: 'amper'",
        ),
        (("--target", "tensorrt-rtx", "--gpu-arch", "9.0"), 2, "unknown compute capability of TensorRT-RTX: '9.0'"),
        (("--target", "tensorrt-rtx", "--precision", "int8"), 2, "int8 needs data to calibrate on"),
    ],
)
def test_flags_that_cannot_be_meant(
    cli: Cli, tmp_path: Path, home: Path, flags: tuple[str, ...], code: int, told: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt-rtx' is not installed")
    write_checkpoint(tmp_path / "model.pt")
    outcome = cli("export", "model.pt", *flags)
    assert (outcome.code, outcome.out) == (code, "")
    assert told in outcome.err
    assert "loading" not in outcome.err  # before any work
    assert [*tmp_path.glob("model.*")] == [tmp_path / "model.pt"]
