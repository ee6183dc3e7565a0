"""The lazy way in gives the numbers of `segment`, computes nothing before it is asked, and makes few tasks."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import pytest
import zarr

from unet_deploy.errors import (
    ChannelError,
    ConfigurationError,
    ModelNotFoundError,
    TileNotLegalError,
    UnsupportedAxesError,
    UnsupportedDtypeError,
    ValueRangeError,
)
from unet_deploy.runtime import segment, segment_array
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.plan import Extents, plan_segmentation

ArtifactFactory = Callable[..., Artifact]
EXTENTS = {"t": 2, "c": 3, "z": 5, "y": 50, "x": 67}


def noise(axes: str, dtype: str = "uint8") -> npt.NDArray[Any]:
    shape = tuple(EXTENTS[axis] for axis in axes)
    return np.random.default_rng(3).integers(0, 256, shape).astype(dtype)


@pytest.fixture
def must_not_run() -> Callable[[Artifact], FakeEngine]:
    """Return an engine factory that fails the test when called."""

    def factory(artifact: Artifact) -> FakeEngine:
        raise AssertionError("an engine was made before anything was computed")

    return factory


@pytest.mark.parametrize(
    ("axes", "chunks", "options"),
    [
        ("yx", (13, 20), {}),
        ("yx", -1, {"tile": (44, 60)}),
        ("zyx", (2, 50, 10), {"batch": 3}),
        ("zyx", ((1, 4), (7, 40, 3), (67,)), {}),
        ("tyx", (1, 25, 25), {"axes": "tyx"}),
        ("cyx", (1, 50, 64), {"axes": "cyx"}),
        ("czyx", (3, 2, 20, 30), {"axes": "czyx", "tile": (60, 44), "batch": 2}),
        ("tczyx", (1, 2, 3, 64, 64), {}),
    ],
)
def test_it_equals_segment(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any, axes: str, chunks: Any, options: dict[str, Any]
) -> None:
    pixels = noise(axes)
    zarr.create_array(tmp_path / "v.zarr", data=pixels, chunks=tuple(min(n, 32) for n in pixels.shape))
    artifact = fake_artifact(classes=3, in_channels=3 if "c" in axes else 1)
    expected = segment(tmp_path / "v.zarr", model=artifact, engine_factory=fake_factory, axes=axes)
    lazy = dask.array.from_array(pixels, chunks=chunks)
    for kind, path in (("labels", "labels/segmentation/0"), ("probabilities", "0")):
        array = segment_array(lazy, model=artifact, engine_factory=fake_factory, kind=kind, **options)
        stored = zarr.open_array(expected.output, path=path, mode="r")
        assert (array.shape, array.dtype) == (stored.shape, np.uint8)
        np.testing.assert_array_equal(array.compute(), np.asarray(stored[...]), strict=True)


def test_channels_are_taken_in_the_models_order(fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    pixels = noise("cyx")
    options = {"model": fake_artifact(in_channels=2), "axes": "cyx", "engine_factory": fake_factory}
    chosen = segment_array(dask.array.from_array(pixels, chunks=(1, 50, 67)), channels=(2, 0), **options)
    plain = segment_array(dask.array.from_array(pixels[[2, 0]], chunks=(2, 20, 20)), **options)
    np.testing.assert_array_equal(chosen.compute(), plain.compute())


def test_an_input_range_is_applied(fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    pixels = noise("yx")
    plain = segment_array(dask.array.from_array(pixels), model=fake_artifact(), engine_factory=fake_factory)
    wide = segment_array(
        dask.array.from_array(pixels.astype("uint16") * 16),
        model=fake_artifact(),
        engine_factory=fake_factory,
        input_range=(0, 255 * 16),
    )
    np.testing.assert_array_equal(wide.compute(), plain.compute())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int32"])
def test_percentiles_are_those_of_the_whole_array(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any, dtype: str
) -> None:
    pixels = noise("czyx", dtype) * np.array([1, 3, 9], dtype).reshape(3, 1, 1, 1)
    artifact = fake_artifact(in_channels=2, classes=3, mean=0.3, std=0.01, percentiles=(1, 99.8))
    options: dict[str, Any] = {"model": artifact, "axes": "czyx", "channels": (2, 0), "engine_factory": fake_factory}
    lazy = dask.array.from_array(pixels, chunks=(2, 1, 20, 30))
    came = segment_array(lazy, **options).compute()
    assert 0.1 < (came == 1).mean() < 0.9
    if dtype == "int32":  # which `segment` does not read
        pixels = pixels.astype("uint16")
    zarr.create_array(tmp_path / "v.zarr", data=pixels, chunks=(1, 5, 32, 32))
    expected = segment(tmp_path / "v.zarr", **options)
    stored = zarr.open_array(expected.output, path="labels/segmentation/0", mode="r")
    np.testing.assert_array_equal(came, np.asarray(stored[...]), strict=True)
    other = segment_array(lazy, **options, input_range=(0, 255)).compute()
    assert (other != came).any()


def test_an_array_is_read_once_for_its_percentiles_and_not_at_all_with_a_range(
    fake_artifact: ArtifactFactory, must_not_run: Any
) -> None:
    read: list[Any] = []

    def chunk(block_id: Any) -> npt.NDArray[np.uint8]:
        read.append(block_id)
        return np.full((1, 50, 67), block_id[0], np.uint8)

    lazy = dask.array.map_blocks(
        chunk, chunks=((1,) * 5, (50,), (67,)), dtype="uint8", meta=np.empty((0, 0, 0), "uint8")
    )
    read.clear()  # dask may have tried the function on nothing
    artifact = fake_artifact(percentiles=(1, 99.8))
    segment_array(lazy, model=artifact, engine_factory=must_not_run, input_range=(0, 9))
    assert read == []
    segment_array(lazy, model=artifact, engine_factory=must_not_run)
    assert sorted(read) == [(z, 0, 0) for z in range(5)]


def test_many_blocks_are_added_up_as_few_are(fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    pixels = noise("zyx")
    artifact = fake_artifact(mean=0.3, std=0.01, percentiles=(1, 99.8))
    results = [
        segment_array(
            dask.array.from_array(pixels, chunks=chunks), model=artifact, engine_factory=fake_factory
        ).compute()
        for chunks in (-1, (1, 10, 10))  # the second: more than a level of the tree
    ]
    np.testing.assert_array_equal(*results, strict=True)


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        (np.full((20, 20), np.nan, np.float32), ValueRangeError, r"^grey values that are no numbers came, "),
        (np.ones((20, 20), np.complex64), UnsupportedDtypeError, r"^complex64 came, .*\n  in the Dask array\n"),
    ],
    ids=["nan", "complex"],
)
def test_percentiles_of_what_is_no_number_are_refused(
    fake_artifact: ArtifactFactory, must_not_run: Any, array: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        segment_array(
            dask.array.from_array(array), model=fake_artifact(percentiles=(1, 99)), engine_factory=must_not_run
        )


def test_a_part_of_the_result_is_that_part(fake_artifact: ArtifactFactory) -> None:
    engines: list[FakeEngine] = []

    def factory(artifact: Artifact) -> FakeEngine:
        engines.append(FakeEngine(artifact.card.network))
        return engines[-1]

    array = segment_array(
        dask.array.from_array(noise("zyx"), chunks=(1, 50, 67)), model=fake_artifact(), engine_factory=factory
    )
    one = array[3].compute()
    (calls,) = (engine.calls for engine in engines)  # only the plane asked for
    np.testing.assert_array_equal(one, array.compute()[3])
    assert [engine.calls for engine in engines] == [(1 + EXTENTS["z"]) * calls]


# Lazy, and of few tasks.


def test_nothing_is_computed_until_asked(fake_artifact: ArtifactFactory, must_not_run: Any) -> None:
    read: list[int] = []

    def chunk(block_id: Any) -> npt.NDArray[np.uint8]:
        read.append(1)
        return np.zeros((1, 50, 67), np.uint8)

    lazy = dask.array.map_blocks(
        chunk, chunks=((1,) * 5, (50,), (67,)), dtype="uint8", meta=np.empty((0, 0, 0), "uint8")
    )
    read.clear()  # dask may have tried the function on nothing
    array = segment_array(lazy, model=fake_artifact(), engine_factory=must_not_run)
    assert isinstance(array, dask.array.Array)
    assert read == []
    with pytest.raises(AssertionError, match=r"^an engine was made before anything was computed$"):
        array.compute()
    assert read


def test_chunks_are_the_planned_blocks(fake_artifact: ArtifactFactory, must_not_run: Any) -> None:
    lazy = dask.array.zeros((130, 5000, 300), chunks=(64, 256, 256), dtype="uint8")
    array = segment_array(lazy, model=fake_artifact(), engine_factory=must_not_run)
    assert array.shape == lazy.shape
    plan = plan_segmentation(
        fake_artifact().card.network, Extents(t=1, z=130, y=5000, x=300), source_chunk=(64, 256, 256)
    )
    assert [sizes[0] for sizes in array.chunks] == [
        min(b, n) for b, n in zip(plan.block_shape, lazy.shape, strict=True)
    ]
    assert [len(sizes) for sizes in array.chunks] == [*plan.block_counts[1:]]
    assert array.chunks[0] == (64, 64, 2)
    assert all(size % 4 == 0 for sizes in array.chunks[1:] for size in sizes[:-1])
    probabilities = segment_array(
        lazy, model=fake_artifact(classes=4), engine_factory=must_not_run, kind="probabilities"
    )
    assert probabilities.shape == (4, *lazy.shape)
    assert probabilities.chunks == ((4,), *array.chunks)


@pytest.mark.parametrize("chunk", [512, 2048])
def test_tasks_grow_with_blocks_and_the_chunks_they_touch_and_no_faster(
    fake_artifact: ArtifactFactory, must_not_run: Any, chunk: int
) -> None:
    # Each block: itself, its place in the result, and two slicings of each chunk that its window touches.
    a_side = 2048 // chunk + 2
    for planes in (1, 2, 4):
        lazy = dask.array.zeros((planes, 8192, 8192), chunks=(1, chunk, chunk), dtype="uint8")
        array = segment_array(lazy, model=fake_artifact(depth=4), engine_factory=must_not_run)
        (graph,) = dask.optimize(array)
        assert array.npartitions == planes * 16
        assert len(dict(graph.__dask_graph__())) <= lazy.npartitions + array.npartitions * (2 * a_side**2 + 3)


def test_the_result_travels(fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    array = segment_array(
        dask.array.from_array(noise("yx"), chunks=(20, 20)), model=fake_artifact(), engine_factory=fake_factory
    )
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(again.compute(), array.compute())


def test_results_join_other_pipelines(fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    lazy = dask.array.from_array(noise("zyx"), chunks=(1, 50, 67))
    labels = segment_array(lazy, model=fake_artifact(classes=3), engine_factory=fake_factory)
    share = (labels == 1).mean()
    assert share.compute() == pytest.approx((labels.compute() == 1).mean())


# What is refused.


@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 5, 6, 7), None), ((5,), None), ((5, 6), "zyx"), ((2, 5, 6), "yx"), ((1,) * 6, None)]
)
def test_axes_that_are_not_named_are_refused(
    fake_artifact: ArtifactFactory, must_not_run: Any, shape: tuple[int, ...], axes: str | None
) -> None:
    with pytest.raises(
        UnsupportedAxesError, match=rf"^axes {axes!r} came for an array of {len(shape)} axes\n  shape \({shape[0]}"
    ) as caught:
        segment_array(
            dask.array.zeros(shape, dtype="uint8"), model=fake_artifact(), axes=axes, engine_factory=must_not_run
        )
    assert caught.value.fix == 'name them all in the order t, c, z, y, x, such as axes="czyx"'


@pytest.mark.parametrize("axes", ["xyz", "zxy", "zyq", "zzx", "czt"])
def test_axes_out_of_order_are_refused(fake_artifact: ArtifactFactory, must_not_run: Any, axes: str) -> None:
    with pytest.raises(
        UnsupportedAxesError,
        match=rf"^axes {', '.join(axes)} came, a subset of t, c, z, y, x in this order .*\n  in the axes argument\n",
    ):
        segment_array(
            dask.array.zeros((2, 3, 4), dtype="uint8"), model=fake_artifact(), axes=axes, engine_factory=must_not_run
        )


@pytest.mark.parametrize(
    ("count", "wanted", "channels", "came"),
    [(3, 1, (), [0, 1, 2]), (3, 2, (0,), [0]), (3, 1, (3,), [3]), (3, 1, (-1,), [-1]), (1, 2, (), [0])],
)
def test_channels_that_do_not_fit_are_refused(
    fake_artifact: ArtifactFactory,
    must_not_run: Any,
    count: int,
    wanted: int,
    channels: tuple[int, ...],
    came: list[int],
) -> None:
    names = ", ".join(f"c{i}" for i in range(wanted))
    with pytest.raises(ChannelError, match=r"^channels .* came, \d of the array's \d were expected\n") as caught:
        segment_array(
            dask.array.zeros((count, 20, 20), dtype="uint8"),
            model=fake_artifact(in_channels=wanted),
            axes="cyx",
            channels=channels,
            engine_factory=must_not_run,
        )
    assert caught.value.headline == f"channels {came} came, {wanted} of the array's {count} were expected"
    assert caught.value.details == (f"the model takes: {names}",)
    assert caught.value.fix == f"channels={list(range(wanted))}"


def test_other_mistakes_are_those_of_segment(tmp_path: Path, fake_artifact: ArtifactFactory, must_not_run: Any) -> None:
    lazy = dask.array.zeros((20, 20), dtype="uint8")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigurationError, r"^results to write: masks came", {"kind": "masks"}),
        (TileNotLegalError, r"^tile side 50 on axis y", {"tile": (50, 60)}),
        (ConfigurationError, r"^batch 0 ", {"batch": 0}),
        (ConfigurationError, r"^input range 1:1 is empty", {"input_range": (1, 1)}),
        (
            ValueRangeError,
            r"^the volume is uint8, .*\n  volume: the Dask array\n",
            {"model": fake_artifact(dtype="uint16")},
        ),
        (ModelNotFoundError, r"^no model file at ", {"model": tmp_path / "none.onnx"}),
    ]
    for error, text, options in cases:
        with pytest.raises(error, match=text):
            segment_array(lazy, **{"model": fake_artifact(), "engine_factory": must_not_run, **options})
