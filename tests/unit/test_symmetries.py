"""The mean over the symmetries of the square: bit for bit the one-pass result, and not the plain one.

The reference turns whole mirrored planes with `numpy.rot90` and `numpy.flip`, which the code under test does not use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import read_arrays, read_provenance, write_array
from unet_deploy.card import Network, TestTensor
from unet_deploy.errors import TestTensorError
from unet_deploy.runtime import segment, segment_array
from unet_deploy.runtime.cost import TTA_PASSES
from unet_deploy.runtime.engines import CheckedEngine
from unet_deploy.runtime.engines.cache import EngineRequest, drop_engine, get_engine
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.symmetries import SYMMETRIES, SymmetricEngine
from unet_deploy.runtime.execute import segment_window
from unet_deploy.runtime.normalise import Normaliser, to_labels, to_probabilities
from unet_deploy.runtime.plan import Extents, SegmentationPlan, WriteGrid
from unet_deploy.runtime.windows import plan_window, spread

Array = npt.NDArray[Any]
RAW = Normaliser(mean=(0.0,), std=(1.0,))


def mirrored(plane: Array, network: Network) -> Array:
    """Return the whole plane with its context, float32 (1, 1, y, x)."""
    windows = [network.geometry.whole_window(extent) for extent in plane.shape]
    padding = [(-window.start, window.stop - extent) for window, extent in zip(windows, plane.shape, strict=True)]
    return np.pad(plane, padding, mode="reflect").astype(np.float32)[None, None]


def one_pass(plane: Array, network: Network) -> list[Array]:
    """Return the logits (k, y, x) of one pass over each of the 8 forms of the whole plane, turned back."""
    engine, whole = FakeEngine(network), mirrored(plane, network)
    found = []
    for quarters in range(4):
        for flips in (False, True):
            turned = np.rot90(np.flip(whole, 3) if flips else whole, quarters, (2, 3))
            logits = np.rot90(engine.infer(turned), -quarters, (2, 3))
            logits = np.flip(logits, 3) if flips else logits
            found.append(logits[0, :, : plane.shape[0], : plane.shape[1]])
    return found


def mean_of_whole_numbers(results: list[Array]) -> Array:
    return (sum(result.astype(np.int64) for result in results) / len(results)).astype(np.float32)


def random_plane(seed: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---- what the symmetries are


def test_they_are_the_quarter_turns_with_and_without_a_mirror() -> None:
    image = np.arange(12).reshape(1, 3, 4)
    ours = {symmetry.apply(image).tobytes() + bytes(symmetry.apply(image).shape) for symmetry in SYMMETRIES}
    forms = [np.rot90(mirror, n, (1, 2)) for mirror in (image, image[:, :, ::-1]) for n in range(4)]
    assert ours == {form.tobytes() + bytes(form.shape) for form in forms}
    assert len(ours) == len(SYMMETRIES) == TTA_PASSES == 8
    np.testing.assert_array_equal(SYMMETRIES[0].apply(image), image)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_each_is_undone(symmetry: Any) -> None:
    image = random_plane(1, (2, 3, 5, 7))
    np.testing.assert_array_equal(symmetry.undo(symmetry.apply(image)), image)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_fake_is_not_symmetric_itself(depth: int) -> None:
    """Guard: were it, the mean would be the plain result, and the tests below would prove nothing."""
    network = Network(depth=depth, base_width=1, in_channels=1, classes=2)
    forms = one_pass(random_plane(2, (40, 50)), network)
    for i, first in enumerate(forms):
        for second in forms[i + 1 :]:
            assert (first != second).any(axis=0).mean() > 0.9


# ---- seamless


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[SegmentationPlan, int]:
    depth = draw(st.integers(1, 4))
    network = Network(depth=depth, base_width=1, in_channels=1, classes=3)
    g = network.geometry
    side = st.integers(1, g.context + 70)
    tile = st.integers(1, 4).map(lambda n: g.tile_side(n * g.divisor))
    chunk = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    blocks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    plan = SegmentationPlan(
        network=network,
        extents=Extents(t=1, z=1, y=draw(side), x=draw(side)),
        grid=WriteGrid(chunk=(1, *chunk)),
        tile_y=draw(tile),
        tile_x=draw(tile),
        batch=draw(st.integers(1, 4)),
        block_shape=(1, chunk[0] * blocks[0], chunk[1] * blocks[1]),
        tta=True,
    )
    return plan, draw(st.integers(0, 2**32 - 1))


@given(cutting=cuttings())
@settings(max_examples=20)
def test_any_plan_gives_the_mean_of_the_one_pass_results(
    fake_artifact: Any, cutting: tuple[SegmentationPlan, int]
) -> None:
    plan, seed = cutting
    e, network = plan.extents, plan.network
    plane = random_plane(seed, (e.y, e.x))
    checked = CheckedEngine(FakeEngine(network), fake_artifact(depth=network.depth, classes=3).card).open()
    labels = np.full((e.y, e.x), 255, np.uint8)
    probabilities = np.zeros((3, e.y, e.x), np.uint8)
    for block in plan.blocks():
        y = plan_window(plan.geometry, block.tiles_y, e.y)
        x = plan_window(plan.geometry, block.tiles_x, e.x)
        found = segment_window(
            spread(plane[None, None, y.source.slice, x.source.slice], y, x),
            block,
            engine=SymmetricEngine(checked),
            normaliser=RAW,
            kinds=("labels", "probabilities"),
            batch=plan.batch,
        )
        assert found.labels is not None
        assert found.probabilities is not None
        labels[block.y.slice, block.x.slice] = found.labels[0]
        probabilities[:, block.y.slice, block.x.slice] = found.probabilities[:, 0]
    expected = mean_of_whole_numbers(one_pass(plane, network))
    np.testing.assert_array_equal(labels, to_labels(expected))
    np.testing.assert_array_equal(probabilities, to_probabilities(expected))


@pytest.mark.parametrize("tile", [(60, 60), (60, 44), (44, 124)])
def test_the_mean_is_exact_and_is_not_the_plain_result(fake_artifact: Any, tile: tuple[int, int]) -> None:
    artifact = fake_artifact(depth=2)
    fake = FakeEngine(artifact.card.network)
    engine = SymmetricEngine(CheckedEngine(fake, artifact.card).open())
    plane = random_plane(3, tile).astype(np.float32)[None, None]
    before = plane.copy()
    mean = engine.infer(plane)
    turned = [symmetry.undo(fake.infer(symmetry.apply(plane))) for symmetry in SYMMETRIES]
    np.testing.assert_array_equal(mean, mean_of_whole_numbers(turned))
    assert (mean != fake.infer(plane)).mean() > 0.9
    np.testing.assert_array_equal(plane, before)  # the input is the caller's
    assert (mean.dtype, mean.flags.owndata) == (np.float32, True)


def test_one_form_runs_at_a_time_in_the_tile_s_two_shapes(fake_artifact: Any) -> None:
    artifact = fake_artifact(depth=2)
    fake = FakeEngine(artifact.card.network)
    engine = SymmetricEngine(CheckedEngine(fake, artifact.card).open())
    engine.infer(np.zeros((3, 1, 60, 44), np.float32))
    assert (fake.calls, fake.shapes) == (8, {(3, 1, 60, 44), (3, 1, 44, 60)})


class ReusingEngine(FakeEngine):
    """Returns its results in one array of its own, as an engine with a bound output may."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._memory = np.zeros(0, np.float32)

    def infer(self, batch: Any) -> Any:
        result = super().infer(batch)
        if self._memory.size != result.size:
            self._memory = np.empty(result.size, np.float32)
        self._memory[:] = result.ravel()
        return self._memory.reshape(result.shape)


def test_an_engine_may_use_its_memory_again(fake_artifact: Any) -> None:
    artifact = fake_artifact(depth=2)
    plane = random_plane(4, (60, 60)).astype(np.float32)[None, None]
    came, expected = (
        SymmetricEngine(CheckedEngine(kind(artifact.card.network), artifact.card).open()).infer(plane)
        for kind in (ReusingEngine, FakeEngine)
    )
    np.testing.assert_array_equal(came, expected)


# ---- the ways in


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write_array(tmp_path / "v.zarr", random_plane(5, (2, 70, 90)), chunk_side=64)


def test_segment(volume: Path, tmp_path: Path, fake_artifact: Any, fake_factory: Any) -> None:
    planes = zarr.open_array(volume, mode="r")[:]
    artifact = fake_artifact(depth=2)
    expected = np.stack([to_labels(mean_of_whole_numbers(one_pass(p, artifact.card.network))) for p in planes])
    results = {}
    for tile in (None, (44, 60)):
        output = tmp_path / f"{tile}.zarr"
        run = segment(volume, model=artifact, engine_factory=fake_factory, output=output, tile=tile, tta=True)
        results[tile] = read_arrays(output)
        assert run.plan.tta
        np.testing.assert_array_equal(results[tile]["labels/segmentation/0"], expected)
    plain = tmp_path / "plain.zarr"
    segment(volume, model=artifact, engine_factory=fake_factory, output=plain)
    assert (read_arrays(plain)["labels/segmentation/0"] != expected).mean() > 0.2
    assert results[None].keys() == results[44, 60].keys()
    for name, array in results[None].items():
        np.testing.assert_array_equal(array, results[44, 60][name])


def test_the_output_says_it(volume: Path, tmp_path: Path, fake_artifact: Any, fake_factory: Any) -> None:
    for tta in (False, True):
        output = tmp_path / f"{tta}.zarr"
        segment(volume, model=fake_artifact(), engine_factory=fake_factory, output=output, tta=tta)
        said = read_provenance(output)
        assert said["parameters"]["tta"] is tta
        assert (said["plan"]["tta"], said["plan"]["passes"]) == (tta, 8 if tta else 1)


def test_a_dask_array(volume: Path, fake_artifact: Any, fake_factory: Any) -> None:
    planes = zarr.open_array(volume, mode="r")[:]
    artifact = fake_artifact(depth=2)
    lazy = dask.array.from_array(planes, chunks=(1, 33, 50))
    plain, tta = (
        segment_array(lazy, model=artifact, engine_factory=fake_factory, tta=tta).compute(scheduler="synchronous")
        for tta in (False, True)
    )
    expected = np.stack([to_labels(mean_of_whole_numbers(one_pass(p, artifact.card.network))) for p in planes])
    np.testing.assert_array_equal(tta, expected)
    assert (plain != tta).mean() > 0.2


# ---- one engine, and the test tensor through the plain network


def test_one_engine_is_open_for_both(fake_artifact: Any) -> None:
    made: list[FakeEngine] = []

    def factory(artifact: Any) -> FakeEngine:
        made.append(FakeEngine(artifact.card.network))
        return made[-1]

    request = EngineRequest(artifact=fake_artifact(depth=2), factory=factory)
    batch = np.zeros((1, 1, 44, 44), np.float32)
    try:
        plain, symmetric = get_engine(request), get_engine(replace(request, tta=True))
        assert isinstance(plain, CheckedEngine)
        assert isinstance(symmetric, SymmetricEngine)
        assert (symmetric.classes, symmetric.describe()) == (plain.classes, plain.describe())
        plain.infer(batch)
        symmetric.infer(batch)
        assert [engine.calls for engine in made] == [1 + 8]
    finally:
        drop_engine(replace(request, tta=True))
    get_engine(request)
    drop_engine(request)
    assert len(made) == 2  # dropped for one, it was dropped for both


def test_the_test_tensor_goes_through_the_plain_network(fake_artifact: Any) -> None:
    artifact = fake_artifact(depth=2)
    image = random_plane(6, (1, 1, 44, 44))
    logits = FakeEngine(artifact.card.network).infer(image.astype(np.float32))

    def request(expected: Array, name: str) -> EngineRequest:
        card = replace(artifact.card, test_tensor=TestTensor(image=image, logits=expected))
        factory: Callable[[Any], FakeEngine] = lambda made: FakeEngine(made.card.network)  # noqa: E731
        return EngineRequest(artifact=replace(artifact, card=card, sha256=name), factory=factory, tta=True)

    good = request(logits, "good")
    assert isinstance(get_engine(good), SymmetricEngine)
    drop_engine(good)
    mean = SymmetricEngine(CheckedEngine(FakeEngine(artifact.card.network), artifact.card).open()).infer(
        image.astype(np.float32)
    )
    with pytest.raises(TestTensorError, match="does not compute what the model's parent computed"):
        get_engine(request(mean, "bad"))
