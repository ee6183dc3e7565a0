"""When memory runs out: batches, then tiles, are halved; the result is the same, and the ladder is climbed once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_pixels, read_arrays, read_provenance, write_image
from unet_deploy.card import Network
from unet_deploy.cli._summary import result_to_object, show_result
from unet_deploy.errors import DeviceMemoryError, PartialResultError
from unet_deploy.geometry import Interval, SameGeometry, UnetGeometry, cover_axis
from unet_deploy.runtime import segment, segment_array
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import Batch, EngineDescription
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.memory import Ladder, Rung, is_out_of_memory
from unet_deploy.runtime.engines.symmetries import SymmetricEngine
from unet_deploy.runtime.execute import segment_window
from unet_deploy.runtime.normalise import Normaliser
from unet_deploy.runtime.plan import Block
from unet_deploy.runtime.windows import plan_window, spread

Array = npt.NDArray[Any]
RAW = Normaliser(mean=(0.0,), std=(1.0,))
SAID = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9"


class SmallEngine(FakeEngine):
    """The integer engine with room for so many input pixels, and its way of saying so."""

    def __init__(
        self, network: Network, *, pixels: int, error: Exception | None = None, takes_bytes: bool = False
    ) -> None:
        super().__init__(network, takes_bytes=takes_bytes)
        self.room = pixels
        self.error = error or RuntimeError(SAID)
        self.refused: list[tuple[int, ...]] = []

    def infer(self, batch: Batch) -> Batch:
        if batch.size > self.room:
            self.refused.append(batch.shape)
            raise self.error
        return super().infer(batch)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (DeviceMemoryError("no room", fix="less"), True),
        (RuntimeError(SAID), True),
        (RuntimeError("BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes"), True),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc"), True),
        (RuntimeError("cudaErrorMemoryAllocation"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("invalid shape"), False),
    ],
)
def test_want_of_memory_is_told_from_the_rest(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@given(
    geometry=st.one_of(
        st.integers(1, 5).map(UnetGeometry), st.sampled_from([SameGeometry(32, 96), SameGeometry(1, 7)])
    ),
    batch=st.integers(1, 64),
    cores=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_a_ladder_ends_at_the_smallest_tile(geometry: Any, batch: int, cores: tuple[int, int]) -> None:
    y, x = (geometry.tile_side(n * geometry.divisor) for n in cores)
    rung: Rung | None = Rung(batch=batch, tile_y=y, tile_x=x)
    seen: list[Rung] = []
    while rung is not None:
        assert all(geometry.is_legal(side) for side in (rung.tile_y, rung.tile_x))
        seen.append(rung)
        rung = rung.below(geometry)
    assert seen[-1] == Rung(batch=1, tile_y=geometry.smallest_tile, tile_x=geometry.smallest_tile)
    assert len(seen) <= 1 + 6 + 7
    for above, below in pairwise(seen):
        if above.batch > 1:  # the batch first
            assert (below.batch, below.tile_y, below.tile_x) == (above.batch // 2, above.tile_y, above.tile_x)
        else:
            assert (below.tile_y, below.tile_x) != (above.tile_y, above.tile_x)


def test_another_threads_step_is_not_taken_twice() -> None:
    ladder, geometry = Ladder(), UnetGeometry(2)
    planned = Rung(batch=4, tile_y=60, tile_x=60)
    for _ in range(2):  # two blocks that failed at the same size
        ladder.step_down(planned, planned, geometry, MemoryError())
    assert ladder.settle(planned) == Rung(batch=2, tile_y=60, tile_x=60)
    other = Rung(batch=4, tile_y=76, tile_x=60)
    assert ladder.climbed(other) == (other,)


# A block.


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, Block, tuple[int, int], int]:
    depth = draw(st.integers(1, 3))
    g = UnetGeometry(depth)
    extent = draw(st.integers(1, 120)), draw(st.integers(1, 120))
    sides = [g.tile_side(draw(st.integers(1, 9)) * g.divisor) for _ in "yx"]
    regions = []
    for size in extent:
        start = draw(st.integers(0, size - 1))
        regions.append(Interval(start, draw(st.integers(start + 1, size))))
    tiles = [cover_axis(g, region, side) for region, side in zip(regions, sides, strict=True)]
    block = Block(
        index=0,
        t=0,
        z=Interval(0, draw(st.integers(1, 2))),
        y=regions[0],
        x=regions[1],
        tiles_y=tiles[0],
        tiles_x=tiles[1],
    )
    return depth, block, extent, draw(st.integers(1, 5))


@given(case=blocks(), room=st.floats(1, 8), takes_bytes=st.booleans(), tta=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_a_block_is_the_same_however_little_memory_there_is(
    make_card: Any,
    case: tuple[int, Block, tuple[int, int], int],
    room: float,
    takes_bytes: bool,
    tta: bool,
    seed: int,
) -> None:
    depth, block, extent, batch = case
    card = make_card(depth=depth, classes=3)
    geometry, network = card.geometry, card.network
    y, x = plan_window(geometry, block.tiles_y, extent[0]), plan_window(geometry, block.tiles_x, extent[1])
    pixels = np.random.default_rng(seed).integers(0, 256, (1, block.z.stop, *extent), dtype=np.uint8)
    window = spread(pixels[:, :, y.source.slice, x.source.slice], y, x)

    def segmented(engine: FakeEngine) -> tuple[Any, Any]:
        checked = CheckedEngine(engine, card).open()
        found = segment_window(
            window,
            block,
            engine=SymmetricEngine(checked) if tta else checked,
            normaliser=RAW,
            kinds=("labels", "probabilities"),
            batch=batch,
        )
        return found.labels, found.probabilities

    small = SmallEngine(network, pixels=int(room * geometry.smallest_tile**2), takes_bytes=takes_bytes)
    for came, expected in zip(segmented(small), segmented(FakeEngine(network)), strict=True):
        np.testing.assert_array_equal(came, expected)


# A run.


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write_image(tmp_path / "v.zarr", make_pixels((5, 100, 90)))


def small_factory(pixels: int, made: list[SmallEngine], **settings: Any) -> Callable[[Artifact], SmallEngine]:
    def factory(artifact: Artifact) -> SmallEngine:
        made.append(SmallEngine(artifact.card.network, pixels=pixels, **settings))
        return made[-1]

    return factory


@pytest.mark.parametrize("takes_bytes", [False, True])
def test_the_ladder_is_climbed_once_in_a_run(
    volume: Path, fake_artifact: Any, fake_factory: Any, caplog: pytest.LogCaptureFixture, takes_bytes: bool
) -> None:
    artifact, made = fake_artifact(), []
    expected = read_arrays(segment(volume, model=artifact, engine_factory=fake_factory).output)
    factory = small_factory(80 * 80, made, takes_bytes=takes_bytes)
    with caplog.at_level(logging.WARNING, logger="unet_deploy"):
        result = segment(
            volume, model=artifact, engine_factory=factory, batch=4, tile=(140, 124), output=volume.with_name("b.zarr")
        )
    for name, came in read_arrays(result.output).items():
        np.testing.assert_array_equal(came, expected[name])
    rungs = [(rung.batch, rung.tile_y, rung.tile_x) for rung in result.rungs]
    assert rungs == [(4, 140, 124), (2, 140, 124), (1, 140, 124), (1, 92, 84), (1, 68, 64)]
    (engine,) = made
    tries = len(engine.refused)
    if takes_bytes:  # the other of two blocks may stand in line with the rung that fails, and is refused once as well
        assert len(rungs) - 1 <= tries <= 2 * (len(rungs) - 1)
    else:
        assert tries == len(rungs) - 1  # by the first block; the others began where it ended
    warned = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert len(warned) == len(rungs) - 1
    assert warned[0] == (
        "memory ran out with 4 tiles of 140 × 124 px; going on with 2 tiles of 140 × 124 px, "
        "which gives the same result"
    )
    said = read_provenance(result.output)
    assert said["out_of_memory"][0] == {"batch": 4, "tile": [140, 124]}
    assert said["out_of_memory"][-1] == {"batch": 1, "tile": [68, 64]}
    assert result.plan.tile_y == 140  # what was planned stays, and with it the blocks


def test_a_block_steps_down_before_another_has_the_engine(
    volume: Path, fake_artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the other would run what is known to fail."""
    was_held: list[bool] = []
    made: list[SmallEngine] = []
    checked: list[CheckedEngine] = []
    opened, step_down = CheckedEngine.open, Ladder.step_down

    def open_noted(self: CheckedEngine) -> CheckedEngine:
        checked.append(self)
        return opened(self)

    def step_down_noted(self: Ladder, *arguments: Any) -> None:
        def take() -> None:
            is_free = checked[0]._lock.acquire(blocking=False)
            if is_free:
                checked[0]._lock.release()
            was_held.append(not is_free)

        other = threading.Thread(target=take)
        other.start()
        other.join()
        step_down(self, *arguments)

    monkeypatch.setattr(CheckedEngine, "open", open_noted)
    monkeypatch.setattr(Ladder, "step_down", step_down_noted)
    segment(volume, model=fake_artifact(), engine_factory=small_factory(80 * 80, made), batch=4, tile=(140, 124))
    assert was_held == [True] * 4


def test_the_summary_says_what_was_done(volume: Path, fake_artifact: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = segment(volume, model=fake_artifact(), engine_factory=small_factory(80 * 80, []), batch=2, tile=(140, 124))
    show_result(result)
    lines = dict(line.split("  ", maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["smaller"].strip() == (
        "memory ran out with 2 tiles of 140 × 124 px, then with 1 tile of 140 × 124 px, "
        "then with 1 tile of 92 × 84 px; went on with 1 tile of 68 × 64 px, which gives the same result"
    )
    assert result_to_object(result)["out_of_memory"][-1] == {"batch": 1, "tile": [68, 64]}


def test_with_enough_memory_nothing_is_said(volume: Path, fake_artifact: Any, fake_factory: Any) -> None:
    result = segment(volume, model=fake_artifact(), engine_factory=fake_factory)
    assert result.rungs == ()
    assert read_provenance(result.output)["out_of_memory"] == []


def test_below_the_smallest_tile_it_says_what_was_tried(volume: Path, fake_artifact: Any) -> None:
    made: list[SmallEngine] = []
    with pytest.raises(PartialResultError, match=r"^5 of 5 blocks failed") as caught:
        segment(volume, model=fake_artifact(), engine_factory=small_factory(100, made), batch=2, tile=(60, 60))
    assert "block 0: DeviceMemoryError: there is no memory even for 1 tile of 44 × 44 px, the smallest" in str(
        caught.value
    )
    reason = read_provenance(volume.with_name("v_segmentation.ome.zarr"))["failed_blocks"][0]["reason"]
    assert "tried before it: 2 tiles of 60 × 60 px, 1 tile of 60 × 60 px, 1 tile of 52 × 52 px" in reason
    assert "the engine said: RuntimeError: [ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to" in reason
    assert "fix: close what else uses the device's memory" in reason
    assert len(made[0].refused) == 5 + 4  # the other blocks tried the smallest, and no more


def test_a_dask_array_climbs_down_too(fake_artifact: Any, fake_factory: Any) -> None:
    import dask.array

    array = dask.array.from_array(make_pixels((3, 80, 70)), chunks=(1, 80, 70))
    settings = {"model": fake_artifact(depth=1), "tile": (88, 80), "batch": 2}
    expected = segment_array(array, engine_factory=fake_factory, **settings).compute(scheduler="synchronous")
    made: list[SmallEngine] = []
    lazy = segment_array(array, engine_factory=small_factory(50 * 50, made), **settings)
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), expected)
    assert made[0].refused


# What an engine says becomes one of ours.


def test_an_engines_words_become_a_device_memory_error(fake_artifact: Any) -> None:
    card = fake_artifact(depth=2).card
    engine = CheckedEngine(SmallEngine(card.network, pixels=10), card).open()
    with pytest.raises(
        DeviceMemoryError,
        match=r"^fake ran out of memory on cpu\n  RuntimeError: \[ONNXRuntimeError\] : 6 : .+ of size 9\n",
    ) as caught:
        engine.infer(np.zeros((1, 1, 44, 44), np.float32))
    assert caught.value.fix.startswith("a smaller tile (--tile) or batch (--batch)")
    assert caught.value.exit_code == 5


def test_an_engines_own_device_memory_error_stays(fake_artifact: Any) -> None:
    card, own = fake_artifact(depth=2).card, DeviceMemoryError("own words", fix="own fix")
    engine = CheckedEngine(SmallEngine(card.network, pixels=10, error=own), card).open()
    with pytest.raises(DeviceMemoryError, match=r"^own words\n  fix: own fix$"):
        engine.infer(np.zeros((1, 1, 44, 44), np.float32))


class Opening(FakeEngine):
    """An engine without room for its weights."""

    def open(self) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    def describe(self) -> EngineDescription:
        raise AssertionError("the engine is not open")


def test_an_engine_that_has_no_room_to_open(fake_artifact: Any) -> None:
    card = fake_artifact(depth=2).card
    with pytest.raises(
        DeviceMemoryError, match=r"^the device has no memory for the network\n  RuntimeError: CUDA failure 2"
    ):
        CheckedEngine(Opening(card.network), card).open()
