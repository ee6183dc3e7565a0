"""A plan is built once; what differs when it is built again is said aloud."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt_fake import PLAN, FakeTensorrt
from unet_deploy.errors import DeviceError, NotAnArtifactError
from unet_deploy.runtime import Artifact, load_artifact
from unet_deploy.runtime.engine_plan import EnginePlan, Profile
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.device_facts import DeviceFacts
from unet_deploy.runtime.engines.tensorrt_cache import PLAN_NAME, get_plan

PROFILE = Profile(minimum=(1, 1, 44, 44), optimum=(1, 1, 76, 76), maximum=(4, 1, 140, 140))
GPU = DeviceFacts(index=0, name="NVIDIA RTX 4090", compute_capability="8.9", driver="13.0", memory_bytes=2**34)
Getter = Callable[..., EnginePlan]


@pytest.fixture
def trt() -> FakeTensorrt:
    return FakeTensorrt()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def get(tmp_path: Path, tiny_artifact: Artifact, trt: FakeTensorrt, said: list[str]) -> Getter:
    """A getter from a cache in `tmp_path`; `said` is what it told."""

    def call(artifact: Artifact = tiny_artifact, **changes: Any) -> EnginePlan:
        defaults: dict[str, Any] = {
            "flavour": "tensorrt",
            "profiles": [PROFILE],
            "device": GPU,
            "folder": tmp_path / "plans",
            "say": said.append,
            "trt": trt,
        }
        return get_plan(artifact, **{**defaults, **changes})

    return call


def built(said: list[str]) -> int:
    return sum(line.startswith("built in ") for line in said)


def test_a_plan_is_built_once(get: Getter, said: list[str], tiny_artifact: Artifact, tmp_path: Path) -> None:
    first, second = get(), get()
    assert said[0] == f"building a tensorrt plan of {tiny_artifact.source}: it is kept in {tmp_path / 'plans'}"
    assert built(said) == 1
    assert first.data == second.data == PLAN
    assert first.manifest == second.manifest
    assert first.card == second.card == tiny_artifact.card
    manifest = first.manifest
    assert (manifest.gpu, manifest.driver, manifest.compute_capabilities) == (GPU.name, "13.0", ("8.9",))
    assert manifest.onnx_sha256 == tiny_artifact.sha256
    assert manifest.flags["tf32"] is False
    if os.name == "posix":
        assert (tmp_path / "plans").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"flavour": "tensorrt-rtx"},
        {"profiles": [replace(PROFILE, maximum=(8, 1, 140, 140))]},
        {"flags": {"tf32": True}},
        {"form": ByteForm(dtype="uint8", kinds=("labels",))},
    ],
)
def test_what_is_asked_for_is_part_of_the_key(
    get: Getter, said: list[str], change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    get()
    if change.get("flavour") == "tensorrt-rtx":
        change = {**change, "trt": pytest.importorskip("tensorrt_rtx", reason="the extra is not installed")}
    get(**change)
    get(**change)
    get()
    assert built(said) == 2
    assert caplog.records == []


def test_another_artifact_is_another_plan(get: Getter, said: list[str], tiny_products: dict[str, Path]) -> None:
    get()
    get(load_artifact(tiny_products["fp16"]))
    assert built(said) == 2
    with pytest.raises(NotAnArtifactError, match=r"^tensorrt would read this graph wrongly\n"):
        get(load_artifact(tiny_products["int8"]))


@pytest.mark.parametrize(
    ("change", "version", "told"),
    [
        ({"driver": "13.1"}, None, "driver: 13.0 → 13.1"),
        ({}, "11.5.0.1", "TensorRT: 11.4.0.106 → 11.5.0.1"),
        ({"driver": "13.1"}, "11.5.0.1", "TensorRT: 11.4.0.106 → 11.5.0.1; driver: 13.0 → 13.1"),
    ],
)
def test_a_stale_plan_is_rebuilt_aloud(
    get: Getter,
    said: list[str],
    trt: FakeTensorrt,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    version: str | None,
    told: str,
) -> None:
    get()
    trt.__version__ = version or trt.__version__
    with caplog.at_level(logging.WARNING):
        plan = get(device=replace(GPU, **change))
    (record,) = caplog.records
    assert record.getMessage().endswith(f"was built for something else, a new one is built ({told})")
    assert built(said) == 2
    assert plan.manifest.version == trt.__version__
    assert len([*(tmp_path / "plans").glob(f"*/{PLAN_NAME}")]) == 1  # the old one is gone
    get(device=replace(GPU, **change))
    assert built(said) == 2


def test_plans_of_two_gpus_stay(get: Getter, said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = replace(GPU, name="NVIDIA A100", compute_capability="8.0")
    get()
    get(device=other)
    assert "GPU: NVIDIA RTX 4090 → NVIDIA A100" in caplog.text
    get()
    get(device=other)
    assert built(said) == 2
    assert len([*(tmp_path / "plans").glob(f"*/{PLAN_NAME}")]) == 2


def test_a_plan_that_was_altered_is_built_anew(
    get: Getter, said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get()
    (file,) = (tmp_path / "plans").glob(f"*/{PLAN_NAME}")
    file.write_bytes(b"a plan of malice!")
    plan = get()
    assert "is not taken, and built anew: " in caplog.text
    assert "altered, truncated or replaced" in caplog.text
    assert plan.data == file.read_bytes() == PLAN
    get()
    assert built(said) == 2
    assert [p.name for p in (tmp_path / "plans").glob(".*")] == []


def test_what_was_measured_is_used_again(get: Getter, trt: FakeTensorrt) -> None:
    get()
    get(flags={"tf32": True})
    assert [call[1] for call in trt.calls if call[0] == "create_timing_cache"] == [b"", b"what was measured"]


def test_a_build_that_fails_leaves_nothing(get: Getter, trt: FakeTensorrt, tmp_path: Path) -> None:
    trt.builds = False
    with pytest.raises(Exception, match="no kernel fits"):
        get()
    assert [*(tmp_path / "plans").iterdir()] == []


def test_a_folder_that_cannot_be_made_is_an_error_of_the_engine(get: Getter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DeviceError, match=r"^there is no folder for TensorRT's plans\n  \w+Error: .*file"):
        get(folder=tmp_path / "file" / "plans")


def test_a_plan_that_cannot_be_kept_is_used(get: Getter, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder goes while the plan is built, as a disk may fill up."""

    def lose(_: str) -> None:
        shutil.rmtree(tmp_path / "plans", ignore_errors=True)
        (tmp_path / "plans").write_text("in the way")

    assert get(say=lose).data == PLAN
    assert "the plan cannot be kept in" in caplog.text


def test_what_killed_builds_left_is_removed(get: Getter, tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir(mode=0o700)
    old, new = (tmp_path / "plans" / f".building-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / PLAN_NAME).write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    get()
    assert not old.exists()
    assert new.exists()


def test_two_that_build_at_once_end_well(get: Getter, said: list[str], tmp_path: Path) -> None:
    start = threading.Barrier(4)
    plans: list[EnginePlan] = []

    def build() -> None:
        trt = FakeTensorrt()
        start.wait()
        plans.append(get(trt=trt))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [plan.data for plan in plans] == [PLAN] * 4
    assert len([*(tmp_path / "plans").glob(f"*/{PLAN_NAME}")]) == 1
    assert [*(tmp_path / "plans").glob(".*")] == []
    before = built(said)
    get()
    assert built(said) == before


@pytest.mark.parametrize(("capability", "built_for"), [("7.5", ("7.5",)), ("12.3", ("8.0", "8.6", "8.9", "12.0"))])
def test_a_plan_of_rtx_is_for_the_gpu_at_hand(
    get: Getter, tmp_path: Path, capability: str, built_for: tuple[str, ...]
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt-rtx' is not installed")
    device = replace(GPU, compute_capability=capability)
    plan = get(flavour="tensorrt-rtx", trt=rtx, device=device)
    assert plan.manifest.compute_capabilities == built_for
    asked = get(flavour="tensorrt-rtx", trt=rtx, device=device, flags={"compute_capabilities": "8.9"})
    assert asked.manifest.compute_capabilities == ("8.9",)
