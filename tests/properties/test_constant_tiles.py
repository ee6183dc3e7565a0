"""A run that answers constant tiles equals one that sends every tile through the network.

The reference never asks for an answer: it normalises each tile of the plan, has the engine compute its logits, alone,
and turns them into bytes. With the integer engine both agree to the last bit for any batch; with a real one for single
tiles, and within a level of 255 in batches.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_deploy.geometry import Interval, UnetGeometry, cover_axis
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import CheckedEngine
from unet_deploy.runtime.engines.constant_tiles import constant_values
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.symmetries import SymmetricEngine, TileEngine
from unet_deploy.runtime.execute import SegmentedWindow, segment_window
from unet_deploy.runtime.normalise import Normaliser, to_labels, to_probabilities
from unet_deploy.runtime.plan import Block
from unet_deploy.runtime.windows import plan_window, spread

Array = npt.NDArray[Any]
BOTH = ("labels", "probabilities")
DTYPES = ("uint8", "uint16", "int16", "float32")


@st.composite
def cases(draw: st.DrawFn, *, depth: int | None = None, channels: int | None = None) -> tuple[Array, list[Block]]:
    """Draw a volume (c, z, y, x) of noise with constant boxes, stripes and planes, and blocks of it."""
    depth = depth or draw(st.integers(1, 2))
    channels = channels or draw(st.integers(1, 2))
    g = UnetGeometry(depth)
    z, y, x = draw(st.integers(1, 2)), draw(st.integers(1, 4 * g.context)), draw(st.integers(1, 4 * g.context))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    volume = rng.integers(0, 200, (channels, z, y, x)).astype(draw(st.sampled_from(DTYPES)))
    for _ in range(draw(st.integers(1, 3))):
        box: list[slice] = []
        for size in (z, y, x):
            start = draw(st.integers(0, size - 1))
            box.append(draw(st.sampled_from([slice(None), slice(start, None), slice(0, start + 1)])))
        for channel in volume:
            channel[tuple(box)] = draw(st.sampled_from([0, 0, 7, 255]))
    sides = [g.tile_side(draw(st.integers(1, 4)) * g.divisor) for _ in "yx"]
    cuts = [sorted({0, size, draw(st.integers(0, size))}) for size in (y, x)]
    regions = [[Interval(*pair) for pair in pairwise(cut)] for cut in cuts]
    blocks = [
        Block(
            index=i,
            t=0,
            z=Interval(0, z),
            y=region_y,
            x=region_x,
            tiles_y=cover_axis(g, region_y, sides[0]),
            tiles_x=cover_axis(g, region_x, sides[1]),
        )
        for i, (region_y, region_x) in enumerate(product(*regions))
    ]
    return volume, blocks


def window_of(volume: Array, block: Block, engine: TileEngine) -> Array:
    y = plan_window(engine.geometry, block.tiles_y, volume.shape[2])
    x = plan_window(engine.geometry, block.tiles_x, volume.shape[3])
    return spread(volume[:, block.z.slice, y.source.slice, x.source.slice], y, x)


def by_the_network(
    window: Array, block: Block, engine: TileEngine, normaliser: Normaliser
) -> tuple[Array, Array, int, set[Any]]:
    """Return labels and probabilities, how many tiles are constant, and their values: every tile sent alone."""
    labels = np.full((block.z.size, block.y.size, block.x.size), 77, np.uint8)
    probabilities = np.full((engine.classes, *labels.shape), 77, np.uint8)
    n_constant, values = 0, set()
    for z, ty, tx in product(range(block.z.size), block.tiles_y, block.tiles_x):
        raw = window[:, z, ty.read.shifted(-block.window_y.start).slice, tx.read.shifted(-block.window_x.start).slice]
        if (raw == raw[:, :1, :1]).all():  # not by the code under test
            n_constant += 1
            values.add(tuple(raw[:, 0, 0].tolist()))
        logits = engine.infer(normaliser(raw)[None])[0][:, ty.crop.slice, tx.crop.slice].copy()
        place = z, ty.keep.shifted(-block.y.start).slice, tx.keep.shifted(-block.x.start).slice
        labels[place] = to_labels(logits)
        probabilities[:, *place] = to_probabilities(logits)
    return labels, probabilities, n_constant, values


def segmented(
    window: Array, block: Block, engine: TileEngine, normaliser: Normaliser, *, batch: int
) -> SegmentedWindow:
    return segment_window(window, block, engine=engine, normaliser=normaliser, kinds=BOTH, batch=batch)


@given(case=cases(), batch=st.sampled_from([1, 3]), takes_bytes=st.booleans(), tta=st.booleans())
@settings(max_examples=60)
def test_answers_are_what_the_network_says(
    make_card: Any, case: tuple[Array, list[Block]], batch: int, takes_bytes: bool, tta: bool
) -> None:
    volume, blocks = case
    depth = next(d for d in (1, 2) if blocks[0].tiles_y[0].read.start == -UnetGeometry(d).context)
    channels = volume.shape[0]
    card = make_card(depth=depth, in_channels=channels, classes=3)
    normaliser = Normaliser(mean=(0.0,) * channels, std=(1.0,) * channels)
    fake, reference = FakeEngine(card.network, takes_bytes=takes_bytes), FakeEngine(card.network)
    engine: TileEngine = CheckedEngine(fake, card).open()
    plain: TileEngine = CheckedEngine(reference, card).open()
    if tta:
        engine, plain = SymmetricEngine(engine), SymmetricEngine(plain)
    known: set[Any] = set()
    for block in blocks:
        window = window_of(volume, block, engine)
        before = fake.calls
        came = segmented(window, block, engine, normaliser, batch=batch)
        labels, probabilities, n_constant, values = by_the_network(window, block, plain, normaliser)
        np.testing.assert_array_equal(came.labels, labels)
        np.testing.assert_array_equal(came.probabilities, probabilities)
        assert came.n_tiles == block.z.size * len(block.tiles_y) * len(block.tiles_x)
        assert came.n_answered == n_constant
        assert came.is_empty == (n_constant == came.n_tiles)
        full, rest = divmod(came.n_tiles - n_constant, batch)
        batches = full + (rest if n_constant else bool(rest))
        asked = len(values - known)  # each value once, alone
        assert fake.calls - before == (batches + asked) * engine.passes
        known |= values
        assert len(engine.answers) == len(known)


@given(case=cases(depth=2, channels=1), batch=st.sampled_from([1, 3]), tta=st.booleans(), order=st.randoms())
@settings(max_examples=12)
def test_a_real_network_too_in_any_order(
    tiny_engines: list[CheckedEngine], case: tuple[Array, list[Block]], batch: int, tta: bool, order: Any
) -> None:
    volume, blocks = case
    normaliser = Normaliser(mean=(128.0,), std=(40.0,))
    for opened in tiny_engines:
        engine: TileEngine = SymmetricEngine(opened) if tta else opened
        windows = [window_of(volume, block, engine) for block in blocks]
        results = []
        for _ in range(2):  # as if killed after any block, and resumed in another process
            opened.answers.clear()
            numbers = list(range(len(blocks)))
            order.shuffle(numbers)
            results.append({i: segmented(windows[i], blocks[i], engine, normaliser, batch=batch) for i in numbers})
        for i, block in enumerate(blocks):
            first, second = results[0][i], results[1][i]
            np.testing.assert_array_equal(first.labels, second.labels)
            np.testing.assert_array_equal(first.probabilities, second.probabilities)
            assert (first.n_answered, first.n_tiles) == (second.n_answered, second.n_tiles)
            labels, probabilities, n_constant, _ = by_the_network(windows[i], block, engine, normaliser)
            assert first.n_answered == n_constant
            assert first.labels is not None
            assert first.probabilities is not None
            difference = np.abs(first.probabilities.astype(np.int16) - probabilities)
            is_bytewise = batch == 1 and opened is tiny_engines[0]  # single tiles, by the host: the very same way
            assert difference.max() <= (0 if is_bytewise else 1)
            differs = first.labels != labels
            assert not (differs.any() if is_bytewise else (differs & (np.abs(probabilities[0] - 127.5) > 1)).any())


@pytest.fixture(scope="module")
def tiny_engines(tiny_artifact: Artifact) -> list[CheckedEngine]:
    """The tiny network, by the host and from raw pixels."""
    from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine

    card = tiny_artifact.card
    by_host = OnnxruntimeCpuEngine(tiny_artifact.data, precision="fp32", threads=1)
    by_bytes = OnnxruntimeCpuEngine(tiny_artifact.data, precision="fp32", threads=1, card=card)
    return [CheckedEngine(engine, card).open() for engine in (by_host, by_bytes)]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 90)),
    dtype=st.sampled_from(["u1", "i1", "<u2", ">u2", "i4", "u8", "f2", "<f4", ">f4", "f8"]),
    seed=st.integers(0, 99),
    changes=st.integers(0, 2),
)
def test_constant_is_one_value_a_channel(shape: tuple[int, int, int], dtype: str, seed: int, changes: int) -> None:
    rng = np.random.default_rng(seed)
    tile = np.empty((shape[0], 2 * shape[1], 3 * shape[2]), dtype)[:, ::2, ::3]  # a view with gaps
    tile[:] = rng.integers(0, 99, (shape[0], 1, 1))
    for _ in range(changes):
        tile[tuple(rng.integers(0, shape))] += 1
    found = constant_values(tile)
    is_constant = (tile == tile[:, :1, :1]).all()
    assert (found is not None) == is_constant
    if found is not None:
        native = tile.dtype.newbyteorder("=")
        np.testing.assert_array_equal(np.frombuffer(b"".join(found), native), tile[:, 0, 0])
