"""The proof passes what is true exactly, and finds each lie, told by engines made for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import make_pixels, write_array
from unet_deploy.card import ModelCard, Network
from unet_deploy.errors import ChannelError, ConfigurationError, ValueRangeError, VolumeNotFoundError
from unet_deploy.geometry import Interval, UnetGeometry, cover_axis
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import CheckedEngine, EngineDescription
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.normalise import Normaliser
from unet_deploy.runtime.pictures import Picture, sample_picture, volume_picture
from unet_deploy.runtime.proof import Proof, axis_grid, prove
from unet_deploy.runtime.receptive_field import Reach

Artifacts = Callable[..., Artifact]
Cards = Callable[..., ModelCard]


class LyingEngine(FakeEngine):
    """The integer network with a flaw in what goes in or comes out."""

    def __init__(self, network: Network, flaw: Callable[[Batch, Callable[[Batch], Batch]], Batch]) -> None:
        super().__init__(network)
        self._flaw = flaw

    def infer(self, batch: Batch) -> Batch:
        return self._flaw(batch, super().infer)


def prove_with(artifact: Artifact, engine: FakeEngine | None = None, **settings: Any) -> Proof:
    g, channels = artifact.card.geometry, artifact.card.network.in_channels
    picture = Picture(
        pixels=make_pixels((channels, 5 * g.divisor + 3, 7 * g.divisor + 1)),
        normaliser=Normaliser(mean=(0.0,) * channels, std=(1.0,) * channels),
        black=0,
        white=255,
        source="noise",
    )
    checked = CheckedEngine(engine or FakeEngine(artifact.card.network), artifact.card).open()
    return prove(artifact, checked, picture, **settings)


def widen(batch: Batch, network: Callable[[Batch], Batch]) -> Batch:
    """Look one pixel further than the network: the largest of 3 by 3 pixels, padded as a "same" convolution does."""
    padded = np.pad(batch, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = batch.shape[2:]
    shifted = [padded[:, :, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    return network(np.max(shifted, axis=0))


def subtract_mean(batch: Batch, network: Callable[[Batch], Batch]) -> Batch:
    """Normalise each tile by itself, as an instance norm does."""
    return network(batch - np.rint(batch.mean(axis=(2, 3), keepdims=True)))


def look_at_a_corner(batch: Batch, network: Callable[[Batch], Batch]) -> Batch:
    """Depend on one pixel of the tile that no impulse ever hits."""
    return network(batch) + batch[:, :1, :1, :1]


def ignore(batch: Batch, network: Callable[[Batch], Batch]) -> Batch:
    return np.zeros_like(network(batch))


def overflow(batch: Batch, network: Callable[[Batch], Batch]) -> Batch:
    """Give infinity for a tile without any grey."""
    logits = network(batch)
    return logits if len(np.unique(batch)) > 2 else logits + np.float32(np.inf)


# ---- what is true


@pytest.mark.parametrize(("depth", "reach"), [(1, (8, 8)), (2, (20, 20)), (3, (44, 48)), (4, (92, 96))])
def test_a_true_card_passes_exactly(depth: int, reach: tuple[int, int], fake_artifact: Artifacts) -> None:
    artifact = fake_artifact(depth=depth, classes=3)
    said: list[str] = []
    proof = prove_with(artifact, say=said.append)
    assert (proof.has_passed, proof.problems) == (True, ())
    assert proof.field.declared == reach
    assert all(
        0 <= want - got <= 1 for side in (proof.field.y, proof.field.x) for want, got in zip(reach, side, strict=True)
    )
    assert depth == 1 or proof.field.is_exact
    assert proof.field.impulses == proof.field.felt == 2 * 2**depth
    assert (proof.field.beyond, proof.field.scrambled) == (0, 0)
    assert [(seam.difference, seam.limit, seam.differing) for seam in proof.seams] == [(0, 0, 0)] * 2
    assert [seam.start for seam in proof.seams] == [0, -(2**depth)]
    assert all(seam.tiles >= 4 for seam in (*proof.seams, proof.misaligned))
    assert proof.seams[0].tile != proof.seams[1].tile
    assert proof.extremes == {"all black": True, "all white": True, "a checkerboard": True}
    assert said == [f"receptive field: {2 * 2**depth} impulses", "tiled against whole", "extremes"]


def test_the_phase_rule_is_shown_to_matter(fake_artifact: Artifacts) -> None:
    """Off the pooling grid nearly every pixel of the integer network differs; that is no failure of the model."""
    proof = prove_with(fake_artifact(depth=3))
    assert (proof.misaligned.start, proof.misaligned.is_equal) == (-4, False)
    assert proof.misaligned.differing > 0.5
    assert proof.misaligned.relabelled > 0.1
    assert proof.has_passed


@pytest.mark.parametrize(("depth", "start"), [(1, -1), (2, -2), (3, -4), (4, -4)])
def test_the_wrong_grid_is_never_a_right_one(depth: int, start: int, fake_artifact: Artifacts) -> None:
    proof = prove_with(fake_artifact(depth=depth))
    assert proof.misaligned.start == start
    assert start % 2**depth


def test_several_channels(fake_artifact: Artifacts) -> None:
    proof = prove_with(fake_artifact(depth=2, in_channels=3))
    assert proof.has_passed
    assert proof.field.is_exact


# ---- lies


def test_a_context_that_is_too_small_is_found(fake_artifact: Artifacts) -> None:
    artifact = fake_artifact(depth=2)
    proof = prove_with(artifact, LyingEngine(artifact.card.network, widen))
    assert not proof.has_passed
    assert proof.field.y == proof.field.x == Reach(21, 21)
    assert proof.problems[0] == (
        "receptive field: the card declares 20 px before and 20 px after a core, an impulse is felt over 21 and 21 px "
        "on axis y, 21 and 21 px on axis x"
    )
    assert [line.partition(":")[0] for line in proof.problems] == ["receptive field"] * 2 + ["seams"] * 2
    assert "when everything outside its declared context is replaced, at most 0 is rounding" in proof.problems[1]
    assert "differ from one pass by" in proof.problems[2]


def test_an_answer_that_depends_on_the_tile_is_found(fake_artifact: Artifacts) -> None:
    artifact = fake_artifact(depth=2)
    proof = prove_with(artifact, LyingEngine(artifact.card.network, subtract_mean))
    assert {line.partition(":")[0] for line in proof.problems} == {"receptive field", "seams"}
    assert proof.field.scrambled > 0


def test_what_no_impulse_hits_is_found_by_scrambling(fake_artifact: Artifacts) -> None:
    artifact = fake_artifact(depth=2)
    proof = prove_with(artifact, LyingEngine(artifact.card.network, look_at_a_corner))
    assert proof.field.beyond == 0
    assert proof.field.scrambled > 0
    assert not proof.field.is_within
    assert proof.problems[0].startswith("receptive field: a core changes by ")


def test_a_silent_network_proves_nothing(fake_artifact: Artifacts) -> None:
    artifact = fake_artifact(depth=1)
    proof = prove_with(artifact, LyingEngine(artifact.card.network, ignore))
    assert (proof.field.felt, proof.field.y) == (0, Reach(0, 0))
    assert proof.problems == (
        "receptive field: no impulse is felt at all, the network's output does not depend on its input",
    )


def test_logits_that_are_no_numbers_are_found(fake_artifact: Artifacts) -> None:
    artifact = fake_artifact(depth=1)
    proof = prove_with(artifact, LyingEngine(artifact.card.network, overflow))
    assert proof.extremes == {"all black": False, "all white": False, "a checkerboard": False}
    assert proof.problems == tuple(f"extremes: {name} gives logits that are no numbers" for name in proof.extremes)


def test_nan_everywhere_is_no_pass(fake_artifact: Artifacts) -> None:
    artifact = fake_artifact(depth=1)
    proof = prove_with(artifact, LyingEngine(artifact.card.network, lambda batch, network: network(batch) * np.nan))
    assert len(proof.problems) == 7
    assert "Infinity" not in json.dumps(proof.to_object())
    assert "NaN" not in json.dumps(proof.to_object())


def test_rounding_beyond_the_reach_is_no_dependence(fake_artifact: Artifacts) -> None:
    """A fast convolution leaves noise in the last bit where nothing depends on the impulse."""
    artifact = fake_artifact(depth=2)

    class Rounding(LyingEngine):
        def describe(self) -> EngineDescription:
            return replace(super().describe(), engine="onnxruntime-cpu")

    def wobble(batch: Batch, network: Callable[[Batch], Batch]) -> Batch:
        logits = network(batch)  # up to 65,535; the limit is 1e-5 of it
        return logits + np.float32(0.01) * (batch.sum() % 2)

    proof = prove_with(artifact, Rounding(artifact.card.network, wobble))
    assert proof.has_passed
    assert 0 < proof.field.beyond < 0.1 < proof.field.beyond_limit
    assert proof.field.is_exact


# ---- grids and pictures


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("extent", [5, 100, 397])
def test_a_grid_from_0_is_that_of_the_runtime(depth: int, extent: int) -> None:
    g = UnetGeometry(depth)
    for core in (g.divisor, 3 * g.divisor):
        assert axis_grid(g, extent, g.tile_side(core), 0) == cover_axis(g, Interval(0, extent), g.tile_side(core))


@pytest.mark.parametrize("start", [-1, -4, -16])
def test_any_grid_keeps_every_pixel_once(start: int) -> None:
    g = UnetGeometry(4)
    tiles = axis_grid(g, 100, g.tile_side(32), start)
    assert [i for tile in tiles for i in range(tile.keep.start, tile.keep.stop)] == [*range(100)]
    assert all(0 <= tile.crop.start < tile.crop.stop <= g.core_side(g.tile_side(32)) for tile in tiles)


def test_a_sample_is_in_the_grey_values_of_the_card(make_card: Cards) -> None:
    plain = sample_picture(make_card(depth=4))
    assert (plain.pixels.dtype, plain.pixels.shape, plain.black, plain.white) == (np.uint8, (1, 393, 377), 0, 255)
    wide = sample_picture(make_card(depth=4, dtype="uint16", value_range=(0.0, 4095.0), in_channels=2))
    assert (wide.pixels.dtype, wide.pixels.shape) == (np.uint16, (2, 393, 377))
    assert 1000 < wide.pixels.max() <= 4095
    assert not np.array_equal(wide.pixels[0], wide.pixels[1])
    scaled = sample_picture(make_card(depth=2, percentiles=(1.0, 99.0)))
    assert scaled.normaliser.std[0] > 50  # of this picture, not of the card


def test_the_middle_of_a_volume(make_card: Cards, tmp_path: Path) -> None:
    pixels = make_pixels((3, 500, 100))
    path = write_array(tmp_path / "v.zarr", pixels, names="zyx")
    picture = volume_picture(make_card(depth=4, mean=7.0), path)
    np.testing.assert_array_equal(picture.pixels, pixels[1:2, 53:446])
    assert picture.source == f"{path}, t 0, z 1, y 53:446, x 0:100"
    assert picture.normaliser.mean == (7.0,)
    measured = volume_picture(make_card(depth=4, percentiles=(1.0, 99.0)), path)
    assert (measured.black, measured.white) == (0, 255)
    assert measured.normaliser.std[0] > 50


def test_a_volume_without_contrast_still_has_a_black_and_a_white(make_card: Cards, tmp_path: Path) -> None:
    path = write_array(tmp_path / "v.zarr", np.full((50, 50), 9, np.uint8), names="yx")
    picture = volume_picture(make_card(depth=2, percentiles=(1.0, 99.0)), path)
    assert (picture.black, picture.white) == (9, 10)


def test_a_volume_that_does_not_fit_is_refused(make_card: Cards, tmp_path: Path) -> None:
    path = write_array(tmp_path / "v.zarr", make_pixels((3, 50, 60)).astype(np.uint16), names="zyx")
    with pytest.raises(ValueRangeError, match=r"the volume is uint16, the model was trained on uint8"):
        volume_picture(make_card(), path)
    assert volume_picture(make_card(), path, input_range=(0, 4095)).white == 4095
    with pytest.raises(ConfigurationError, match=r"input range 5:5 is empty"):
        volume_picture(make_card(), path, input_range=(5, 5))
    with pytest.raises(ChannelError, match=r"the model takes 2 channel\(s\)"):
        volume_picture(make_card(in_channels=2), path)
    with pytest.raises(VolumeNotFoundError, match="there is nothing at"):
        volume_picture(make_card(), tmp_path / "none.zarr")


def test_a_volume_smaller_than_a_core_is_mirrored(fake_artifact: Artifacts, tmp_path: Path) -> None:
    artifact = fake_artifact(depth=3)
    path = write_array(tmp_path / "v.zarr", make_pixels((11, 23)), names="yx")
    checked = CheckedEngine(FakeEngine(artifact.card.network), artifact.card).open()
    proof = prove(artifact, checked, volume_picture(artifact.card, path))
    assert proof.has_passed
    assert proof.field.is_within
