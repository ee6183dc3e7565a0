"""A plan runs on what it was built for, and the message says so before the first tile."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt_fake import FakeTensorrt
from tests.unit.test_engine_plan import DATA, MANIFEST, PLAN
from unet_deploy.errors import ConfigurationError, DeviceError, ModelNotFoundError, UnsafeModelError, UsageError
from unet_deploy.runtime import Artifact
from unet_deploy.runtime.engine_plan import Profile, write_engine_plan
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.device_facts import DeviceFacts
from unet_deploy.runtime.engines.tensorrt_cache import get_plan
from unet_deploy.runtime.planned import PlannedArtifact, has_form, load_model, settle_engine_name

GPU = DeviceFacts(index=0, name="NVIDIA RTX 4090", compute_capability="8.9", driver="13.0", memory_bytes=2**34)
PROFILE = Profile(minimum=(1, 1, 44, 44), optimum=(1, 1, 76, 76), maximum=(4, 1, 140, 140))


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "model.engine"
    plan = replace(PLAN, manifest=replace(MANIFEST, **{"form": None, **changes}))
    write_engine_plan(path, plan, overwrite=True, key_folder=folder / "key")
    return path


@pytest.fixture
def planned(tmp_path: Path) -> Artifact:
    return load_model(write(tmp_path), key_folder=tmp_path / "key")


def get(artifact: Artifact, *, trt: FakeTensorrt | None = None, device: DeviceFacts = GPU) -> Any:
    return get_plan(artifact, flavour="tensorrt", profiles=[PROFILE], device=device, trt=trt or FakeTensorrt())


def test_a_plan_is_loaded_by_its_suffix(planned: Artifact, tiny_model: Path, tmp_path: Path) -> None:
    assert isinstance(planned, PlannedArtifact)
    assert (planned.data, planned.card) == (DATA, PLAN.card)
    assert planned.sha256 == hashlib.sha256(DATA).hexdigest()
    assert pickle.loads(pickle.dumps(planned)).plan.manifest == planned.plan.manifest  # it goes to Dask's workers
    assert type(load_model(tiny_model)) is Artifact
    with pytest.raises(ModelNotFoundError, match="no engine plan at"):
        load_model(tmp_path / "none.engine")


def test_a_plan_of_another_is_refused_unless_trusted(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(UnsafeModelError, match="is not signed with your key"):
        load_model(path, key_folder=tmp_path / "other")
    assert load_model(path, key_folder=tmp_path / "other", is_trusted=True).data == DATA


def test_a_plan_is_not_built_again(planned: Artifact) -> None:
    trt = FakeTensorrt()
    assert get(planned, trt=trt).data == DATA
    assert trt.calls == []


def test_a_plan_has_its_engine(planned: Artifact, tiny_artifact: Artifact) -> None:
    assert settle_engine_name(planned, None, None) == "tensorrt"
    assert settle_engine_name(planned, "tensorrt", (4, 1, 140, 44)) == "tensorrt"
    assert settle_engine_name(tiny_artifact, "openvino", (9, 9, 9, 9)) == "openvino"
    assert settle_engine_name(tiny_artifact, None, None) is None
    with pytest.raises(
        UsageError, match=r"^engine openvino was asked for, and .*model\.engine is a plan of tensorrt\n"
    ):
        open_engine(planned, engine="openvino")
    with pytest.raises(UsageError, match=r"^engine tensorrt runs on cuda, and device cpu was asked for"):
        open_engine(planned, device="cpu")


def test_a_plan_out_of_the_cache_may_give_no_logits(tmp_path: Path) -> None:
    path = write(tmp_path, form=ByteForm(dtype="uint8", kinds=("labels",)))
    with pytest.raises(ConfigurationError, match=r"model\.engine begins at raw pixels, and gives no logits\n"):
        open_engine(load_model(path, key_folder=tmp_path / "key"))


def test_batches_it_was_not_built_for_are_refused(planned: Artifact) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"^batches of 5 × 1 × 76 × 76 will come, and .*model\.engine was not built for them\n"
        r"  it takes 1 × 1 × 44 × 44 to 4 × 1 × 140 × 140\n  fix: --tile or --batch within that",
    ):
        open_engine(planned, batch_shape=(5, 1, 76, 76))


def test_another_version_is_refused(planned: Artifact) -> None:
    with pytest.raises(
        DeviceError, match=r"model\.engine was built by tensorrt 11\.4\.0\.106, here is 11\.5\.0\n"
    ) as caught:
        get(planned, trt=FakeTensorrt(version="11.5.0"))
    assert caught.value.fix == "build it here: unet-deploy export model.pt --target tensorrt"


def test_another_gpu_is_refused_unless_it_was_built_for_several(planned: Artifact, tmp_path: Path) -> None:
    other = replace(GPU, name="NVIDIA RTX 5090")
    with pytest.raises(DeviceError, match=r"was built for NVIDIA RTX 4090, here is NVIDIA RTX 5090\n"):
        get(planned, device=other)
    path = write(tmp_path, flags={"hardware_compatibility": "ampere_plus"})
    assert get(load_model(path, key_folder=tmp_path / "key"), device=other).data == DATA


def test_raw_pixels_only_where_the_plan_begins_there(
    planned: Artifact, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    form = ByteForm(dtype="uint8", kinds=("labels",))
    assert not has_form(planned, form)
    assert has_form(tiny_artifact, form)
    assert has_form(load_model(write(tmp_path, form=form), key_folder=tmp_path / "key"), form)
