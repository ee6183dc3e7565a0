"""Constant tiles: answered once, kept within bounds, and failing as any other tile where there is no answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from tests.foreign_graphs import monai_like, save, smp_like
from tests.tiny import make_pixels, read_arrays
from unet_deploy.card import ModelCard
from unet_deploy.errors import ValueRangeError
from unet_deploy.geometry import Interval, cover_axis
from unet_deploy.runtime import segment, segment_array
from unet_deploy.runtime.artifact import Artifact, load_artifact
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.constant_tiles import (
    MAX_ANSWERS,
    MAX_BYTES,
    Answer,
    AnswerKey,
    ConstantAnswers,
    constant_values,
)
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.memory import Rung
from unet_deploy.runtime.engines.runner import ByteRunner, TileWork, choose_runner
from unet_deploy.runtime.engines.symmetries import SymmetricEngine, TileEngine
from unet_deploy.runtime.execute import SegmentedWindow, segment_window
from unet_deploy.runtime.layout import Kind
from unet_deploy.runtime.normalise import Normaliser, to_labels, to_probabilities
from unet_deploy.runtime.plan import Block

Array = npt.NDArray[Any]
RAW = Normaliser(mean=(0.0,), std=(1.0,))
BOTH: tuple[Kind, ...] = ("labels", "probabilities")


@pytest.fixture
def card(make_card: Any) -> ModelCard:
    made: ModelCard = make_card(depth=2, classes=3)
    return made


def block_of(card: ModelCard, tiles: tuple[int, int, int] = (1, 2, 2), side: int = 60) -> tuple[Block, tuple[int, ...]]:
    """Return a block of so many tiles along z, y and x, and the shape of its window."""
    g = card.geometry
    z, ny, nx = tiles
    y, x = (Interval(0, n * g.core_side(side)) for n in (ny, nx))
    tiles_y, tiles_x = cover_axis(g, y, side), cover_axis(g, x, side)
    block = Block(index=0, t=0, z=Interval(0, z), y=y, x=x, tiles_y=tiles_y, tiles_x=tiles_x)
    return block, (card.network.in_channels, z, block.window_y.size, block.window_x.size)


def segmented(
    window: Array,
    block: Block,
    engine: TileEngine,
    *,
    normaliser: Normaliser = RAW,
    kinds: tuple[Kind, ...] = BOTH,
    batch: int = 1,
) -> SegmentedWindow:
    return segment_window(window, block, engine=engine, normaliser=normaliser, kinds=kinds, batch=batch)


# Whether a tile is constant.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_no_number_is_never_constant(value: float, dtype: str) -> None:
    assert constant_values(np.full((1, 50, 50), value, dtype)) is None
    beside = np.zeros((2, 50, 50), dtype)
    beside[1] = value
    assert constant_values(beside) is None


def test_zeros_of_both_signs_are_two_values() -> None:
    zeros = np.zeros((1, 50, 50), np.float32)
    assert constant_values(-zeros) != constant_values(zeros)
    zeros[0, 20, 20] = -0.0
    assert constant_values(zeros) is None


def test_one_pixel_anywhere_is_seen() -> None:
    tile = np.full((1, 70, 67), 9, np.uint16)
    for place in np.ndindex(tile.shape):
        tile[place] = 8
        assert constant_values(tile) is None, place
        tile[place] = 9


def test_other_dtypes_are_never_constant() -> None:
    assert constant_values(np.zeros((1, 50, 50), np.complex64)) is None
    assert constant_values(np.zeros((1, 50, 50), np.bool_)) is None


# The answers that are kept.


def key_of(value: int) -> AnswerKey:
    return AnswerKey(shape=(1, 9, 9), dtype="|u1", values=(bytes([value]),), normaliser=RAW, kinds=BOTH, passes=1)


def answer_of(n_bytes: int) -> Answer:
    return Answer(labels=np.zeros((1, n_bytes), np.uint8), probabilities=None)


def test_a_few_answers_are_kept_those_used_last() -> None:
    answers = ConstantAnswers()
    for value in range(MAX_ANSWERS):
        answers.keep(key_of(value), answer_of(1))
    assert answers.find(key_of(0)) is not None
    answers.keep(key_of(200), answer_of(1))
    assert len(answers) == MAX_ANSWERS
    assert answers.find(key_of(1)) is None
    assert answers.find(key_of(0)) is not None
    answers.clear()
    assert (len(answers), answers.n_bytes) == (0, 0)


def test_answers_are_bounded_in_bytes_the_newest_aside() -> None:
    answers = ConstantAnswers()
    answers.keep(key_of(0), answer_of(MAX_BYTES // 2))
    answers.keep(key_of(1), answer_of(MAX_BYTES // 2))
    assert answers.n_bytes == MAX_BYTES
    answers.keep(key_of(2), answer_of(1))
    assert answers.find(key_of(0)) is None
    assert answers.n_bytes == MAX_BYTES // 2 + 1
    answers.keep(key_of(3), answer_of(2 * MAX_BYTES))
    assert (len(answers), answers.n_bytes) == (1, 2 * MAX_BYTES)


def test_answers_are_bounded_with_many_threads() -> None:
    answers = ConstantAnswers()

    def use(seed: int) -> None:
        for value in np.random.default_rng(seed).integers(0, 20, 300).tolist():
            found = answers.find(key_of(value))
            assert found is None or found.n_bytes == value + 1
            answers.keep(key_of(value), answer_of(value + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert len(answers) == MAX_ANSWERS


# A block.


@pytest.mark.parametrize("value", [0, 255, 7])
@pytest.mark.parametrize("takes_bytes", [False, True])
def test_an_empty_block_asks_once_and_the_next_not_at_all(card: ModelCard, value: int, takes_bytes: bool) -> None:
    fake = FakeEngine(card.network, takes_bytes=takes_bytes)
    engine = CheckedEngine(fake, card).open()
    block, shape = block_of(card, (3, 2, 3))
    window = np.full(shape, value, np.uint8)
    first = segmented(window, block, engine, batch=4)
    assert (first.n_tiles, first.n_answered, first.is_empty) == (18, 18, True)
    assert (fake.calls, fake.streamed, fake.shapes) == (1, int(takes_bytes), {(1, 1, 60, 60)})
    second = segmented(window, block, engine, batch=4)
    assert second.is_empty
    assert fake.calls == 1
    np.testing.assert_array_equal(second.labels, first.labels)
    np.testing.assert_array_equal(second.probabilities, first.probabilities)
    engine.close()
    assert len(engine.answers) == 0


def test_channels_are_constant_each_by_its_own_value(make_card: Any) -> None:
    card = make_card(depth=2, in_channels=2, classes=3)
    normaliser = Normaliser(mean=(0.0, 0.0), std=(1.0, 1.0))
    fake = FakeEngine(card.network)
    engine = CheckedEngine(fake, card).open()
    block, shape = block_of(card)
    results = []
    for values in ((30, 50), (50, 30), (30, 50)):
        window = np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], shape)
        results.append(segmented(window, block, engine, normaliser=normaliser))
        assert results[-1].is_empty
    assert fake.calls == 2
    assert (results[0].probabilities != results[1].probabilities).any()  # type: ignore[union-attr]
    np.testing.assert_array_equal(results[0].probabilities, results[2].probabilities)
    half = np.zeros(shape, np.uint8)
    half[1] = make_pixels(shape[1:])
    assert segmented(half, block, engine, normaliser=normaliser).n_answered == 0


def test_an_answer_is_one_of_its_dtype_constants_kinds_passes_and_shape(card: ModelCard) -> None:
    fake = FakeEngine(card.network)
    engine = CheckedEngine(fake, card).open()
    block, shape = block_of(card)
    window = np.full(shape, 7, np.uint8)
    segmented(window, block, engine)
    calls = fake.calls

    def asks(window: Array, block: Block, engine: TileEngine, **settings: Any) -> int:
        nonlocal calls
        counts = []
        for _ in range(2):
            segmented(window, block, engine, **settings)
            counts.append(fake.calls - calls)
            calls = fake.calls
        assert counts[1] == 0  # it is kept
        return counts[0]

    assert asks(window, block, engine) == 0
    assert asks(window.astype(np.uint16), block, engine) == 1
    assert asks(window, block, engine, normaliser=Normaliser(mean=(0.0,), std=(1.0,), gain=2.0)) == 1
    assert asks(window, block, engine, kinds=("labels",)) == 1
    assert asks(window, block, SymmetricEngine(engine)) == 8
    other, other_shape = block_of(card, (1, 1, 1), side=76)
    assert asks(np.full(other_shape, 7, np.uint8), other, engine) == 1
    assert asks(window, block, engine, batch=3) == 0  # an answer is a single tile's


def test_the_other_tiles_fill_batches_and_what_is_left_goes_alone(card: ModelCard) -> None:
    block, shape = block_of(card, (1, 2, 4))
    noise = make_pixels(shape)
    whole = FakeEngine(card.network)
    segmented(noise, block, CheckedEngine(whole, card).open(), batch=3)
    assert whole.shapes == {(3, 1, 60, 60), (2, 1, 60, 60)}  # as if there were no answers
    part = FakeEngine(card.network)
    noise[..., :60] = 0  # two tiles
    noise[..., :60, 60:] = make_pixels((1, 60, shape[-1] - 60))
    came = segmented(noise, block, CheckedEngine(part, card).open(), batch=5)
    assert (came.n_answered, came.n_tiles) == (2, 8)
    assert part.shapes == {(5, 1, 60, 60), (1, 1, 60, 60)}  # no shape of this block's alone
    assert part.calls == 1 + 1 + 1


def test_an_empty_block_does_not_wait_for_the_engine(card: ModelCard) -> None:
    engine = CheckedEngine(FakeEngine(card.network), card).open()
    block, shape = block_of(card)
    window = np.zeros(shape, np.uint8)
    expected = segmented(window, block, engine)
    with ThreadPoolExecutor(1) as pool, engine.reserved():  # as a block does that is being computed
        came = pool.submit(segmented, window, block, engine).result(timeout=60)
    np.testing.assert_array_equal(came.labels, expected.labels)


# Where there is no answer.


class Saying(FakeEngine):
    """The integer engine, that says NaN at one output pixel of tiles whose first pixel is 9."""

    place = (0, 0)

    def infer(self, batch: Batch) -> Batch:
        logits = super().infer(batch)
        for tile, output in zip(batch, logits, strict=True):
            if tile[0, 0, 0] == 9:
                output[(slice(None), *self.place)] = np.nan
        return logits


@pytest.mark.parametrize("takes_bytes", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # a byte can be no NaN
def test_a_constant_tile_without_numbers_fails_as_any_other(card: ModelCard, takes_bytes: bool, batch: int) -> None:
    engine = CheckedEngine(Saying(card.network, takes_bytes=takes_bytes), card).open()
    block, shape = block_of(card, (2, 2, 2))
    window = np.zeros(shape, np.uint8)
    window[:, 1] = 9
    for _ in range(2):  # also when it is known to have no answer
        with pytest.raises(
            ValueRangeError,
            match=r"^the network's output is not a number there\n  plane z 1, y 0:\d+, x 0:\d+\n"
            r"  its grey values are too large for the network\n",
        ):
            segmented(window, block, engine, batch=batch)
    assert segmented(window[:, :1].repeat(2, axis=1), block, engine, batch=batch).is_empty


@pytest.mark.parametrize("takes_bytes", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # a byte can be no NaN
def test_no_number_at_a_pixel_that_is_dropped_is_no_failure(make_card: Any, takes_bytes: bool) -> None:
    class Corner(Saying):
        place = (-1, -1)  # surplus

    card = make_card(depth=3, classes=3)
    assert card.geometry.surplus
    corner = Corner(card.network, takes_bytes=takes_bytes)
    block, shape = block_of(card, side=card.geometry.tile_side(24))
    window = np.full(shape, 9, np.uint8)
    came = segmented(window, block, CheckedEngine(corner, card).open())
    assert came.n_answered == 0
    expected = segmented(window, block, CheckedEngine(FakeEngine(card.network), card).open())
    assert expected.is_empty
    np.testing.assert_array_equal(came.labels, expected.labels)
    np.testing.assert_array_equal(came.probabilities, expected.probabilities)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "holds NaN or infinity"), (np.float32(3e38), "are too large")])
def test_a_region_of_no_numbers_fails_as_before(card: ModelCard, value: float, said: str) -> None:
    fake = FakeEngine(card.network)
    block, shape = block_of(card)
    with pytest.raises(ValueRangeError, match=rf"^the network's output is not a number there\n.*\n.*{said}"):
        segmented(np.full(shape, value, np.float32), block, CheckedEngine(fake, card).open())
    assert fake.calls == 0


# Where memory runs out.


class Small(FakeEngine):
    """The integer engine with room for so many pixels."""

    def __init__(self, network: Any, pixels: int) -> None:
        super().__init__(network)
        self.room = pixels

    def infer(self, batch: Batch) -> Batch:
        if batch.size > self.room:
            raise MemoryError
        return super().infer(batch)


@pytest.mark.parametrize("batch", [1, 4])
def test_smaller_tiles_have_answers_of_their_own(card: ModelCard, batch: int) -> None:
    block, shape = block_of(card, (2, 2, 2), side=92)
    window = np.zeros(shape, np.uint8)
    window[:, :, :50, :50] = make_pixels((1, 2, 50, 50))
    expected = segmented(window, block, CheckedEngine(FakeEngine(card.network), card).open(), batch=batch)
    small = Small(card.network, 70 * 70)
    engine = CheckedEngine(small, card).open()
    for _ in range(2):
        came = segmented(window, block, engine, batch=batch)
        np.testing.assert_array_equal(came.labels, expected.labels)
        np.testing.assert_array_equal(came.probabilities, expected.probabilities)
        assert 0 < came.n_answered < came.n_tiles
    assert came.n_tiles > expected.n_tiles
    planned = Rung(batch=batch, tile_y=92, tile_x=92)
    rung = engine.ladder.settle(planned)
    assert small.shapes == {(1, 1, rung.tile_y, rung.tile_x)}


def test_an_empty_block_takes_the_rung_that_holds(card: ModelCard) -> None:
    block, shape = block_of(card, (2, 2, 2), side=92)
    engine = CheckedEngine(Small(card.network, 92 * 92), card).open()
    came = segmented(np.zeros(shape, np.uint8), block, engine, batch=4)
    assert came.is_empty
    planned = Rung(batch=4, tile_y=92, tile_x=92)
    assert engine.ladder.climbed(planned) == (planned,)  # nothing ran out: a single tile was all that ran


# Other networks.


@pytest.mark.parametrize("make", [smp_like, monai_like])
@pytest.mark.parametrize("takes_bytes", [False, True])
def test_an_adopted_network_is_answered_alike(tmp_path: Path, make: Callable[[], Any], takes_bytes: bool) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    from unet_deploy.exporters import AdoptionSettings, adopt_model
    from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine

    adopted = tmp_path / "ours.onnx"
    settings = AdoptionSettings(mean=(100.0,), std=(50.0,))
    adopt_model(save(make(), tmp_path / "other.onnx"), adopted, settings, threads=1)
    artifact: Artifact = load_artifact(adopted)
    card = artifact.card
    own = OnnxruntimeCpuEngine(artifact.data, precision="fp32", threads=1, card=card if takes_bytes else None)
    engine = CheckedEngine(own, card).open()
    side = card.geometry.tile_side(32)
    block, shape = block_of(card, (1, 3, 2), side=side)
    window = np.full(shape, 30, np.uint8)
    core = card.geometry.core_side(side)
    window[..., :core] = make_pixels((1, 1, shape[2], core))  # the first column of tiles
    normaliser = Normaliser(mean=card.normalisation.mean, std=card.normalisation.std)
    came = segmented(window, block, engine, normaliser=normaliser)
    assert (came.n_answered, came.n_tiles) == (3, 6)
    runner = choose_runner(engine, normaliser, dtype="uint8", kinds=BOTH)
    assert isinstance(runner, ByteRunner) == takes_bytes
    labels = np.empty((1, block.y.size, block.x.size), np.uint8)
    probabilities = np.empty((card.network.classes, *labels.shape), np.uint8)
    for ty, tx in product(block.tiles_y, block.tiles_x):  # each through the network, alone
        place = 0, ty.keep.slice, tx.keep.slice
        y, x = ty.read.shifted(-block.window_y.start), tx.read.shifted(-block.window_x.start)
        work = TileWork(
            z=0,
            raw=window[:, 0, y.slice, x.slice],
            crop=(ty.crop.slice, tx.crop.slice),
            labels=labels[place],
            probabilities=probabilities[:, *place],
        )
        assert not list(runner.run([[work]]))
    np.testing.assert_array_equal(came.labels, labels)
    np.testing.assert_array_equal(came.probabilities, probabilities)
    assert len(np.unique(probabilities)) > 1


# A run.


@pytest.mark.parametrize("batch", [1, 3])
def test_a_sparse_volume_is_what_the_network_says_everywhere(tmp_path: Path, fake_artifact: Any, batch: int) -> None:
    shape, made = (3, 300, 260), []
    array = zarr.create_array(tmp_path / "v.zarr", shape=shape, chunks=(1, 64, 64), dtype="uint8", fill_value=40)
    array[1, 64:128, :64] = make_pixels((64, 64))  # the rest is not even there
    array[2] = 255

    def factory(artifact: Artifact) -> FakeEngine:
        made.append(FakeEngine(artifact.card.network))
        return made[-1]

    artifact = fake_artifact(depth=2, classes=3)
    result = segment(tmp_path / "v.zarr", model=artifact, engine_factory=factory, tile=(76, 92), batch=batch)
    came = read_arrays(result.output)
    labels, probabilities = came["labels/segmentation/0"], came["0"]
    padding = [(-w.start, w.stop - n) for n in shape[1:] if (w := artifact.card.geometry.whole_window(n))]
    (engine,) = made
    asked, shapes = engine.calls, engine.shapes
    for z, plane in enumerate(array[...]):
        logits = engine.infer(np.pad(plane, padding, mode="reflect").astype(np.float32)[None, None])[0]
        logits = logits[:, : shape[1], : shape[2]]
        np.testing.assert_array_equal(labels[z], to_labels(logits))
        np.testing.assert_array_equal(probabilities[:, z], to_probabilities(logits))
    assert result.n_empty == 2  # a plane is a block
    tile = 76, 92
    assert (1, 1, *tile) in shapes
    cores = [artifact.card.geometry.core_side(side) for side in tile]
    n_tiles = math.prod(-(-n // core) for n, core in zip(shape[1:], cores, strict=True))
    assert asked <= 2 + n_tiles // 2  # of 3 * n_tiles: one for each value, and those that see the chunk


def test_a_dask_array_is_answered_too(fake_artifact: Any, fake_factory: Any) -> None:
    import dask.array

    pixels = np.zeros((2, 150, 140), np.uint8)
    pixels[1, :70, :60] = make_pixels((70, 60))
    made: list[FakeEngine] = []

    def factory(artifact: Artifact) -> FakeEngine:
        made.append(fake_factory(artifact))
        return made[-1]

    array = dask.array.from_array(pixels, chunks=(1, 150, 140))
    settings: dict[str, Any] = {"model": fake_artifact(depth=1, classes=4), "tile": (40, 40)}
    came = segment_array(array, engine_factory=factory, **settings).compute(scheduler="synchronous")
    whole = FakeEngine(settings["model"].card.network)
    geometry = settings["model"].card.geometry
    padding = [(-w.start, w.stop - n) for n in pixels.shape[1:] if (w := geometry.whole_window(n))]
    for z, plane in enumerate(pixels):
        logits = whole.infer(np.pad(plane, padding, mode="reflect").astype(np.float32)[None, None])[0]
        np.testing.assert_array_equal(came[z], to_labels(logits[:, :150, :140]))
    core = geometry.core_side(40)
    assert made[0].calls < -(-150 // core) * -(-140 // core)  # of twice as many
