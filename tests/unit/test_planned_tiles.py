"""A run with an engine plan is cut into tiles that the plan was built for, unless somebody says otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_pixels, write_array
from tests.unit.test_engine_plan import MANIFEST, PLAN
from unet_deploy.errors import ConfigurationError
from unet_deploy.runtime import prepare
from unet_deploy.runtime.engine_costs import rule_for
from unet_deploy.runtime.engine_plan import Profile
from unet_deploy.runtime.planned import PlannedArtifact


def planned(fake_artifact: Any, *profiles: Profile) -> PlannedArtifact:
    card = fake_artifact(depth=2, base_width=32).card
    plan = replace(PLAN, card=card, manifest=replace(MANIFEST, form=None, profiles=profiles))
    return PlannedArtifact(data=plan.data, card=card, source="x.engine", sha256="0" * 64, n_nodes=0, plan=plan)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write_array(tmp_path / "v.zarr", make_pixels((1, 150, 90)), names="zyx")


def test_turned_tiles_must_fit_too(volume: Path, fake_artifact: Any) -> None:
    wide = Profile(minimum=(1, 1, 44, 44), optimum=(1, 1, 76, 140), maximum=(1, 1, 76, 140))
    prepare(volume, model=planned(fake_artifact, wide), tile=(76, 140))
    prepare(volume, model=planned(fake_artifact, wide), tile=(76, 76), tta=True)
    with pytest.raises(ConfigurationError, match=r"^batches of 1 × 1 × 140 × 76 will come, and x\.engine was"):
        prepare(volume, model=planned(fake_artifact, wide), tile=(76, 140), tta=True)


def test_the_planners_tile_is_kept_within_the_plan(volume: Path, fake_artifact: Any) -> None:
    small = Profile(minimum=(1, 1, 44, 44), optimum=(2, 1, 76, 76), maximum=(2, 1, 76, 76))
    wide = Profile(minimum=(1, 1, 60, 60), optimum=(2, 1, 92, 316), maximum=(2, 1, 92, 316))

    def freely(**settings: Any) -> tuple[int, int]:
        costs = rule_for("tensorrt", "fp32")
        plan = prepare(volume, model=fake_artifact(depth=2, base_width=32), costs=costs, **settings).plan
        return plan.tile_y, plan.tile_x

    assert freely()[0] > 92
    assert 76 < freely()[1] <= 204

    def tile(*profiles: Profile, **settings: Any) -> tuple[int, int]:
        plan = prepare(volume, model=planned(fake_artifact, *profiles), **settings).plan
        return plan.tile_y, plan.tile_x

    assert tile(small) == (76, 76)
    assert tile(small, wide) == (92, freely()[1])  # the larger one; no wider than is of use
    assert tile(small, wide, batch=2) == (92, freely(batch=2)[1])
    assert tile(replace(small, maximum=(2, 1, 204, 204))) == freely()  # already within
    assert tile(small, tile=(60, 60)) == (60, 60)
    assert tile(small, tile=(316, 316)) == (316, 316)  # opening the engine refuses it, and says what would do
    assert tile(small, batch=3) == freely(batch=3)  # no profile takes it: likewise
