"""Whoever only looks at a machine takes the plans that are there, builds none, and leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt_fake import PLAN, FakeTensorrt
from tests.tiny import snapshot
from unet_deploy.errors import DeviceError
from unet_deploy.runtime import Artifact
from unet_deploy.runtime.engine_plan import Profile
from unet_deploy.runtime.engines.base import EngineOptions
from unet_deploy.runtime.engines.choice import ENGINES
from unet_deploy.runtime.engines.device_facts import DeviceFacts
from unet_deploy.runtime.engines.tensorrt_cache import get_plan
from unet_deploy.runtime.kept_plans import NOT_TRIED, quick_kinds, read_plan_cache, take_kept_plan
from unet_deploy.runtime.machine import Gpu, Gpus, ask_driver

PROFILE = Profile(minimum=(1, 1, 44, 44), optimum=(1, 1, 76, 76), maximum=(4, 1, 140, 140))
GPU = DeviceFacts(index=0, name="NVIDIA RTX 4090", compute_capability="8.9", driver="13.0", memory_bytes=2**34)
Request = dict[str, Any]


@pytest.fixture
def request_of_a_plan(tmp_path: Path) -> Request:
    return {
        "flavour": "tensorrt",
        "profiles": [PROFILE],
        "device": GPU,
        "folder": tmp_path / "plans",
        "trt": FakeTensorrt(),
    }


def test_a_plan_that_is_there_is_taken(tiny_artifact: Artifact, request_of_a_plan: Request) -> None:
    built = get_plan(tiny_artifact, **request_of_a_plan)
    taken = take_kept_plan(tiny_artifact, **request_of_a_plan)
    assert taken.data == built.data == PLAN
    assert taken.manifest == built.manifest


@pytest.mark.parametrize("what", ["no-folder", "empty-folder", "other-plan"])
def test_a_plan_that_is_not_there_is_not_built(
    what: str, tiny_artifact: Artifact, request_of_a_plan: Request, tmp_path: Path
) -> None:
    if what == "empty-folder":
        (tmp_path / "plans").mkdir(mode=0o700)
    elif what == "other-plan":
        wider = replace(PROFILE, maximum=(8, 1, 140, 140))
        get_plan(tiny_artifact, **{**request_of_a_plan, "profiles": [wider], "trt": FakeTensorrt()})
    before = snapshot(tmp_path)
    with pytest.raises(
        DeviceError, match=rf"^{NOT_TRIED}: its plan of tiny is yet to be built\n  the first run builds it"
    ) as caught:
        take_kept_plan(tiny_artifact, **request_of_a_plan)
    assert caught.value.fix == "unet-deploy segment VOLUME.zarr --engine tensorrt"
    assert snapshot(tmp_path) == before
    assert not any(call[0] == "parse" for call in request_of_a_plan["trt"].calls)


def test_only_tensorrts_engines_are_replaced(fake_artifact: Callable[..., Artifact]) -> None:
    quick = quick_kinds()
    assert [(kind.name, kind.device) for kind in quick] == [(kind.name, kind.device) for kind in ENGINES]
    kept = {kind.name for kind, other in zip(quick, ENGINES, strict=True) if kind is other}
    assert kept == {kind.name for kind in ENGINES} - {"tensorrt", "tensorrt-rtx"}


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_nothing_is_made(name: str, fake_artifact: Callable[..., Artifact]) -> None:
    if ask_driver().found:
        pytest.skip("there is a GPU here")
    (kind,) = (kind for kind in quick_kinds() if kind.name == name)
    with pytest.raises(DeviceError, match=r"^no NVIDIA GPU can be used here\n"):
        kind.make(fake_artifact(), EngineOptions())


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_with_a_gpu_the_engine_gets_its_plan_from_the_cache(name: str, fake_artifact: Callable[..., Artifact]) -> None:
    gpu = Gpu(name="NVIDIA RTX 4090", driver="580", memory_bytes=2**34, compute_capability="8.9")
    (kind,) = (kind for kind in quick_kinds(ask=lambda: Gpus(found=(gpu,), note="")) if kind.name == name)
    assert type(kind.make(fake_artifact(), EngineOptions())).__name__ == "TensorrtEngine"


def test_what_lies_in_the_cache_is_counted(tmp_path: Path, tiny_artifact: Artifact, request_of_a_plan: Request) -> None:
    empty = read_plan_cache(tmp_path / "plans")
    assert (empty.folder, empty.plans, empty.total_bytes) == (str(tmp_path / "plans"), 0, 0)
    get_plan(tiny_artifact, **request_of_a_plan)
    found = read_plan_cache(tmp_path / "plans")
    assert found.plans == 1
    assert found.total_bytes == sum(p.stat().st_size for p in (tmp_path / "plans").rglob("*") if p.is_file())
    assert read_plan_cache().folder.endswith("plans") or "no home" in read_plan_cache().folder
