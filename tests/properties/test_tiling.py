"""The first specification: tiled equals whole, bit for bit, however the work is cut.

The engine is the integer fake, which depends on exactly the pixels and the pooling grid that the network depends on.
The reference is one pass over the whole mirrored plane, mirrored by numpy and not by our own code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unet_deploy.card import Network
from unet_deploy.geometry import Interval, UnetGeometry, cover_axis
from unet_deploy.runtime import segment, segment_array
from unet_deploy.runtime.engines import CheckedEngine
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.execute import segment_window
from unet_deploy.runtime.normalise import Normaliser, to_labels, to_probabilities
from unet_deploy.runtime.plan import Extents, SegmentationPlan, WriteGrid
from unet_deploy.runtime.windows import plan_window, spread

Array = npt.NDArray[Any]
RAW = Normaliser(mean=(0.0,), std=(1.0,))


def one_pass(plane: Array, network: Network) -> Array:
    """Return logits (k, y, x) of one pass over the whole plane (y, x), mirrored by numpy."""
    g = network.geometry
    padding = []
    for extent in plane.shape:
        window = g.whole_window(extent)
        padding.append((-window.start, window.stop - extent))
    mirrored = np.pad(plane, padding, mode="reflect").astype(np.float32)
    logits = FakeEngine(network).infer(mirrored[None, None])[0]
    return logits[:, : plane.shape[0], : plane.shape[1]]


def random_plane(seed: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[SegmentationPlan, int]:
    """Draw a plan that no planner would make: any legal tile, any chunk, any block of whole chunks, any batch."""
    depth = draw(st.integers(1, 4))
    g = UnetGeometry(depth)
    side = st.integers(1, 3 * g.context + 40)
    tile = st.integers(1, 6).map(lambda n: g.tile_side(n * g.divisor))
    y, x = draw(side), draw(side)
    chunk = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    blocks = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    plan = SegmentationPlan(
        network=Network(depth=depth, base_width=1, in_channels=1, classes=3),
        extents=Extents(t=1, z=draw(st.integers(1, 3)), y=y, x=x),
        grid=WriteGrid(chunk=(1, *chunk)),
        tile_y=draw(tile),
        tile_x=draw(tile),
        batch=draw(st.integers(1, 5)),
        block_shape=(draw(st.integers(1, 2)), chunk[0] * blocks[0], chunk[1] * blocks[1]),
    )
    return plan, draw(st.integers(0, 2**32 - 1))


@given(cutting=cuttings(), takes_bytes=st.booleans())
@settings(max_examples=150)
def test_any_plan_gives_the_one_pass_result(
    fake_artifact: Any, cutting: tuple[SegmentationPlan, int], takes_bytes: bool
) -> None:
    plan, seed = cutting
    e, network = plan.extents, plan.network
    volume = random_plane(seed, (e.z, e.y, e.x))
    fake = FakeEngine(network, takes_bytes=takes_bytes)
    engine = CheckedEngine(fake, fake_artifact(depth=network.depth, classes=3).card).open()
    labels = np.full((e.z, e.y, e.x), 255, np.uint8)
    probabilities = np.zeros((3, e.z, e.y, e.x), np.uint8)
    times_written = np.zeros((e.z, e.y, e.x), np.uint8)
    for block in plan.blocks():
        y = plan_window(plan.geometry, block.tiles_y, e.y)
        x = plan_window(plan.geometry, block.tiles_x, e.x)
        window = spread(volume[None, block.z.slice, y.source.slice, x.source.slice], y, x)
        found = segment_window(
            window, block, engine=engine, normaliser=RAW, kinds=("labels", "probabilities"), batch=plan.batch
        )
        place = block.z.slice, block.y.slice, block.x.slice
        labels[place], probabilities[:, *place] = found.labels, found.probabilities  # type: ignore[assignment]
        times_written[place] += 1
    assert (times_written == 1).all()
    assert fake.streamed == (fake.calls if takes_bytes else 0)  # that way, and no other
    for z in range(e.z):
        logits = one_pass(volume[z], network)
        np.testing.assert_array_equal(labels[z], to_labels(logits))
        np.testing.assert_array_equal(probabilities[:, z], to_probabilities(logits))


@pytest.fixture(scope="module", params=[(1, 1), (1, 3), (3, 2)], ids=lambda p: f"{p[0]}x{p[1]}")
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    workers, threads = request.param
    with Client(
        processes=False,
        n_workers=workers,
        threads_per_worker=threads,
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        set_as_default=False,
    ) as made:
        yield made


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    depth = draw(st.integers(1, 3))
    g = UnetGeometry(depth)
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 150)), draw(st.integers(1, 150))
    tile = st.integers(1, 6).map(lambda n: g.tile_side(n * g.divisor))
    return {
        "depth": depth,
        "shape": shape,
        "chunks": (draw(st.integers(1, 3)), draw(st.integers(1, 160)), draw(st.integers(1, 160))),
        "tile": draw(st.none() | st.tuples(tile, tile)),
        "batch": draw(st.integers(1, 4)),
        "zarr_format": draw(st.sampled_from([2, 3])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@pytest.mark.slow
@given(run=runs())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_run_gives_the_one_pass_result(
    client: Any, fake_artifact: Any, fake_factory: Any, run: dict[str, Any]
) -> None:
    volume = random_plane(run["seed"], run["shape"])
    artifact = fake_artifact(depth=run["depth"], classes=3)
    expected = np.stack([to_labels(one_pass(plane, artifact.card.network)) for plane in volume])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.zarr"
        zarr.create_array(str(path), data=volume, chunks=run["chunks"], zarr_format=run["zarr_format"])
        result = segment(
            path,
            model=artifact,
            engine_factory=fake_factory,
            tile=run["tile"],
            batch=run["batch"],
            scheduler=client,
        )
        came = zarr.open_array(str(result.labels / "0"), mode="r")[:]  # type: ignore[operator]
    np.testing.assert_array_equal(came, expected)


@given(run=runs())
@settings(max_examples=25)
def test_a_dask_array_gives_the_one_pass_result(fake_artifact: Any, fake_factory: Any, run: dict[str, Any]) -> None:
    import dask.array

    volume = random_plane(run["seed"], run["shape"])
    artifact = fake_artifact(depth=run["depth"], classes=3)
    expected = np.stack([to_labels(one_pass(plane, artifact.card.network)) for plane in volume])
    lazy = segment_array(
        dask.array.from_array(volume, chunks=run["chunks"]),
        model=artifact,
        engine_factory=fake_factory,
        tile=run["tile"],
        batch=run["batch"],
    )
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), expected)


def tile_by_stride(plane: Array, network: Network, *, tile: int, stride: int) -> Array:
    """Tile as anybody would, with cores of `stride` pixels wherever they fall; the way of the paper's figure 2."""
    g = network.geometry
    engine = FakeEngine(network)
    result = np.empty((network.classes, *plane.shape), np.float32)
    reach = tile + stride
    padded = np.pad(plane, [(g.context, reach)] * 2, mode="reflect").astype(np.float32)
    for y in range(0, plane.shape[0], stride):
        for x in range(0, plane.shape[1], stride):
            logits = engine.infer(padded[None, None, y : y + tile, x : x + tile])[0]
            part = result[:, y : y + stride, x : x + stride]
            part[:] = logits[:, : part.shape[1], : part.shape[2]]
    return result


@pytest.mark.parametrize("depth", [3, 4])
def test_the_specification_fails_for_origins_off_the_grid(depth: int) -> None:
    network = Network(depth=depth, base_width=1, in_channels=1, classes=2)
    g = network.geometry
    tile = g.tile_side(6 * g.divisor)
    plane = random_plane(5, (3 * tile, 2 * tile))
    whole = one_pass(plane, network)

    aligned = tile_by_stride(plane, network, tile=tile, stride=g.core_side(tile))
    np.testing.assert_array_equal(aligned, whole)
    papers = tile_by_stride(plane, network, tile=tile, stride=g.output_side(tile))  # 388 at depth 4 and tile 572
    assert (papers != whole).any(axis=0).mean() > 0.5


def test_the_fake_sees_exactly_the_context() -> None:
    """Guard: were its receptive field smaller than the network's, the specification would prove too little."""
    network = Network(depth=2, base_width=1, in_channels=1, classes=2)
    g = network.geometry
    side = g.tile_side(g.divisor)
    black = np.zeros((side, side), np.float32)
    assert not FakeEngine(network).infer(black[None, None])[:, 0].any()
    for y, x in [(0, 0), (0, side - 1), (side - 1, 0), (side - 1, side - 1)]:
        lit = black.copy()
        lit[y, x] = 1  # alone in the dark it wins every max-pooling
        assert FakeEngine(network).infer(lit[None, None])[:, 0].any(), (y, x)


def test_tiles_of_a_run_have_one_shape(fake_artifact: Any) -> None:
    artifact = fake_artifact(depth=2)
    engine = FakeEngine(artifact.card.network)
    checked = CheckedEngine(engine, artifact.card).open()
    tiles = cover_axis(UnetGeometry(2), Interval(0, 100), 84)
    plan = SegmentationPlan(
        network=artifact.card.network, extents=Extents(t=1, z=1, y=100, x=100), grid=WriteGrid(chunk=(1, 64, 64)),
        tile_y=84, tile_x=84, batch=1, block_shape=(1, 128, 128),
    )  # fmt: skip
    (block,) = plan.blocks()
    assert block.tiles_y == tiles
    y, x = (plan_window(plan.geometry, tiles, 100) for _ in "yx")
    segment_window(
        spread(random_plane(0, (1, 1, 100, 100)), y, x),
        block,
        engine=checked,
        normaliser=RAW,
        kinds=("labels",),
        batch=1,
    )
    assert engine.shapes == {(1, 1, 84, 84)}
