"""A run from a path to a result: what is chosen, refused and reported, and that choices of cost change nothing."""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from distributed import Client, LocalCluster

from tests.tiny import snapshot, write_array, write_image
from unet_deploy.card import ModelCard, TestTensor
from unet_deploy.errors import (
    ChannelError,
    ConfigurationError,
    OutputExistsError,
    OutputPathError,
    PartialResultError,
    SchedulerError,
    TestTensorError,
    TileNotLegalError,
    UnknownNameError,
    ValueRangeError,
)
from unet_deploy.runtime import Progress, default_output, open_volume, prepare, segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import Batch, ByteResult, RawBatch
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.layout import require_kinds
from unet_deploy.runtime.preparation import choose_channels, resolve_model
from unet_deploy.runtime.scheduling import connect

ArtifactFactory = Callable[..., Artifact]
Arrays = dict[str, npt.NDArray[Any]]


def noise(*shape: int, dtype: str = "uint8") -> npt.NDArray[Any]:
    return np.random.default_rng(7).integers(0, 256, shape).astype(dtype)


def arrays_of(store: Path) -> Arrays:
    root = zarr.open_group(store, mode="r")
    return {name: np.asarray(node[...]) for name, node in root.members(max_depth=None) if isinstance(node, zarr.Array)}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Return a volume of 3 planes in blocks of one plane."""
    return write_array(tmp_path / "brain.zarr", noise(3, 70, 90), chunk_side=64)


# What is chosen when nobody says.


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        ("brain.ome.zarr", "brain_segmentation.ome.zarr"),
        ("data/brain.zarr", "data/brain_segmentation.ome.zarr"),
        ("data/brain.zarr/", "data/brain_segmentation.ome.zarr"),
        ("data/brain", "data/brain_segmentation.ome.zarr"),
        ("a.b/brain.v2.zarr", "a.b/brain.v2_segmentation.ome.zarr"),
    ],
)
def test_the_result_goes_beside_the_volume(volume: str, expected: str) -> None:
    assert default_output(volume) == default_output(Path(volume)) == Path(expected)


def test_the_result_goes_beside_the_store_and_not_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "brain.ome.zarr", noise(1, 20, 20))
    assert default_output(tmp_path / "brain.ome.zarr" / "0") == tmp_path / "brain_0_segmentation.ome.zarr"
    monkeypatch.chdir(tmp_path / "brain.ome.zarr")
    assert default_output(".").resolve() == tmp_path / "brain_segmentation.ome.zarr"


def test_the_bundled_network_is_the_model_of_last_resort(tiny_model: Path, tiny_artifact: Artifact) -> None:
    assert resolve_model(None).source == "bundled membrane.onnx"
    assert resolve_model(str(tiny_model)).sha256 == tiny_artifact.sha256
    assert resolve_model(tiny_artifact) is tiny_artifact


# Channels.


@pytest.fixture
def many(tmp_path: Path, make_card: Callable[..., ModelCard]) -> Callable[..., tuple[int, ...]]:
    """Return what chooses among the channels of a volume that has the names given, or a number of them."""

    def choose(names: tuple[str, ...] | int | None, wanted: int, *channels: int | str) -> tuple[int, ...]:
        path, labels = tmp_path / "v.zarr", names if isinstance(names, tuple) else ()
        if names is None:
            write_image(path, noise(1, 20, 20))
        else:
            write_image(path, noise(len(labels) or names, 20, 20), axes="cyx", channel_names=labels)  # type: ignore[arg-type]
        return choose_channels(open_volume(path).info, make_card(in_channels=wanted), channels)

    return choose


@pytest.mark.parametrize(
    ("names", "wanted", "channels", "expected"),
    [
        (None, 1, (), (0,)),
        (None, 1, (0,), (0,)),
        (3, 3, (), (0, 1, 2)),
        (3, 1, (2,), (2,)),
        (3, 1, ("2",), (2,)),
        (3, 2, (2, 0), (2, 0)),  # in the order given
        (3, 2, (1, 1), (1, 1)),
        (("dapi", "gfp"), 1, ("gfp",), (1,)),
        (("dapi", "gfp"), 2, ("gfp", "0"), (1, 0)),
        (("1", "0"), 1, ("1",), (0,)),  # text is a name first
        (("1", "0"), 1, (1,), (1,)),  # a number is an index
    ],
)
def test_channels_are_chosen_by_index_or_name(
    many: Any, names: Any, wanted: int, channels: tuple[int | str, ...], expected: tuple[int, ...]
) -> None:
    assert many(names, wanted, *channels) == expected


@pytest.mark.parametrize("channel", ["rfp", 2, -1, "-1", "1.0", "", "²"])
def test_a_channel_that_does_not_exist_is_refused(many: Any, channel: int | str) -> None:
    with pytest.raises(
        ChannelError, match=r"^the volume has no channel .*\n  channels of .*v\.zarr: 0 \(dapi\), 1 \(gfp\)\n"
    ) as e:
        many(("dapi", "gfp"), 1, channel)
    assert repr(channel) in e.value.headline
    assert e.value.fix == "--channel 0"


@pytest.mark.parametrize(
    ("count", "wanted", "channels", "came", "fix"),
    [
        (3, 1, (), "the volume has 3", "--channel 0"),
        (3, 2, (), "the volume has 3", "--channel 0 --channel 1"),
        (3, 2, (1,), "1 were chosen", "--channel 0 --channel 1"),
        (3, 1, (0, 1), "2 were chosen", "--channel 0"),
        (None, 2, (), "the volume has 1", "use a model trained on these channels"),
        (2, 3, (), "the volume has 2", "use a model trained on these channels"),
    ],
)
def test_the_number_of_channels_must_be_the_models(
    many: Any, count: int | None, wanted: int, channels: tuple[int, ...], came: str, fix: str
) -> None:
    names = ", ".join(f"c{i}" for i in range(wanted))
    with pytest.raises(
        ChannelError, match=rf"^the model takes {wanted} channel\(s\) \({names}\), {came}\n  channels of "
    ) as e:
        many(count, wanted, *channels)
    assert e.value.fix == fix


def test_channels_reach_the_network_in_the_models_order(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any
) -> None:
    pixels = noise(3, 40, 50)
    write_image(tmp_path / "v.zarr", pixels, axes="cyx", channel_names=("a", "b", "c"))
    write_image(tmp_path / "w.zarr", pixels[[2, 0]], axes="cyx")
    options = {"model": fake_artifact(in_channels=2), "engine_factory": fake_factory}
    chosen = segment(tmp_path / "v.zarr", channels=["c", 0], **options)
    plain = segment(tmp_path / "w.zarr", **options)
    swapped = segment(tmp_path / "w.zarr", channels=[1, 0], output=tmp_path / "swapped.zarr", **options)
    np.testing.assert_array_equal(arrays_of(chosen.output)["0"], arrays_of(plain.output)["0"])
    assert (arrays_of(swapped.output)["0"] != arrays_of(plain.output)["0"]).any()


# What is refused, with nothing written.


def test_nothing_is_written_before_everything_is_checked(
    volume: Path, tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any
) -> None:
    (tmp_path / "there.zarr").mkdir()
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigurationError, r"^results to write: masks came", {"write": ["labels", "masks"]}),
        (ConfigurationError, r"^results to write: none came", {"write": []}),
        (UnknownNameError, r"^unknown device: 'tpu'", {"device": "tpu"}),
        (TileNotLegalError, r"^tile side 50 on axis x", {"tile": (60, 50)}),
        (ConfigurationError, r"^batch 0 is not", {"batch": 0}),
        (ConfigurationError, r"^a process of 0 MiB does not hold", {"max_memory_bytes": 10}),
        (ConfigurationError, r"^input range 3:3 is empty", {"input_range": (3, 3)}),
        (ChannelError, r"^the volume has no channel 1\n", {"channels": [1]}),
        (ValueRangeError, r"^the volume is uint8, the model was", {"model": fake_artifact(dtype="uint16")}),
        (OutputExistsError, r"there\.zarr exists\n", {"output": tmp_path / "there.zarr"}),
        (OutputPathError, r"lie inside each other\n", {"output": volume / "labels"}),
        (OutputPathError, r"does not exist\n", {"output": tmp_path / "no" / "out.zarr"}),
        (OutputPathError, r"is no segmentation", {"output": tmp_path / "there.zarr", "overwrite": True}),
    ]
    before = snapshot(tmp_path)
    for error, text, options in cases:
        with pytest.raises(error, match=text):
            segment(volume, **{"model": fake_artifact(), "engine_factory": fake_factory, **options})
        assert snapshot(tmp_path) == before, text


def test_an_engine_that_computes_something_else_writes_nothing(
    volume: Path, tmp_path: Path, tiny_artifact: Artifact
) -> None:
    card = tiny_artifact.card
    other = replace(card, normalisation=replace(card.normalisation, mean=(1.0,)))
    before = snapshot(tmp_path)
    with pytest.raises(TestTensorError, match=r"^onnxruntime-cpu on cpu does not compute"):
        segment(volume, model=replace(tiny_artifact, card=other, sha256="other"), engine="onnxruntime-cpu")
    assert snapshot(tmp_path) == before


def test_an_engine_that_makes_something_else_of_raw_pixels_writes_nothing(
    volume: Path, tmp_path: Path, fake_artifact: ArtifactFactory
) -> None:
    class Wrong(FakeEngine):
        def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
            yield from super().stream(batches, gain=gain + 1, offset=offset)

    made = fake_artifact()
    image = noise(1, 1, *[made.card.geometry.smallest_tile] * 2)
    logits = FakeEngine(made.card.network).infer(image.astype(np.float32))
    card = replace(made.card, test_tensor=TestTensor(image=image, logits=logits))
    artifact = replace(made, card=card, sha256="other")
    before = snapshot(tmp_path)
    with pytest.raises(TestTensorError, match=r"^fake on cpu does not give for raw pixels"):
        segment(volume, model=artifact, engine_factory=lambda a: Wrong(a.card.network, takes_bytes=True))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("came", "shown"), [([], "none"), (["mask"], "mask"), (["x", "labels", "a"], "a, x")])
def test_only_known_results_are_written(came: list[str], shown: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"^results to write: {shown} came, labels or probabilities was expected\n"
    ) as caught:
        require_kinds(came)
    assert caught.value.fix == "--write labels --write probabilities"
    assert require_kinds(["probabilities", "labels"]) == ("labels", "probabilities")


def test_preparing_writes_nothing(volume: Path, tmp_path: Path, fake_artifact: ArtifactFactory) -> None:
    before = snapshot(tmp_path)
    ready = prepare(volume, model=fake_artifact(), tile=(60, 44))
    assert (ready.plan.tile_y, ready.plan.tile_x) == (60, 44)
    assert ready.plan.extents.pixels == 3 * 70 * 90
    assert ready.channels == (0,)
    assert snapshot(tmp_path) == before


def test_workers_get_paths_that_mean_the_same_everywhere(
    volume: Path, monkeypatch: pytest.MonkeyPatch, fake_artifact: ArtifactFactory
) -> None:
    monkeypatch.chdir(volume.parent)
    ready = prepare("brain.zarr", model=fake_artifact())
    assert Path(ready.volume.info.path) == volume
    assert Path(ready.output_spec(Path("out.zarr"), ("labels",)).path) == volume.parent / "out.zarr"


# The run.


def test_the_result_says_what_was_made(
    volume: Path, tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any
) -> None:
    result = segment(volume, model=fake_artifact(classes=3), engine_factory=fake_factory, tile=(44, 60))
    assert result.output == tmp_path / "brain_segmentation.ome.zarr"
    assert result.labels == result.output / "labels" / "segmentation"
    assert result.failed == ()
    assert result.engine.engine == "fake"
    assert set(result.seconds) == {
        "total",
        "prepare",
        "statistics",
        "blocks",
        "pyramid",
        "instances",
        "read",
        "infer",
        "write",
    }
    assert all(value >= 0 for value in result.seconds.values())
    assert result.seconds["total"] >= result.seconds["prepare"] + result.seconds["blocks"]
    assert result.pixels_per_second == pytest.approx(3 * 70 * 90 / result.seconds["total"])
    labels = arrays_of(result.output)["labels/segmentation/0"]
    assert result.class_fractions == pytest.approx({f"class {k}": (labels == k).mean() for k in range(3)})
    assert sum(result.class_fractions.values()) == pytest.approx(1)


def test_without_labels_there_are_no_fractions_to_tell(
    volume: Path, fake_artifact: ArtifactFactory, fake_factory: Any
) -> None:
    result = segment(volume, model=fake_artifact(), engine_factory=fake_factory, write=["probabilities"])
    assert (result.labels, result.class_fractions) == (None, {})


def test_an_overwritten_result_is_the_new_one(
    volume: Path, tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any
) -> None:
    first = segment(volume, model=fake_artifact(classes=2), engine_factory=fake_factory)
    again = segment(
        volume, model=fake_artifact(classes=3), engine_factory=fake_factory, overwrite=True, write=["labels"]
    )
    assert again.output == first.output
    found = arrays_of(again.output)
    assert sorted(found) == ["labels/segmentation/0", "unet_deploy_run"]
    assert set(np.unique(found["labels/segmentation/0"])) == {0, 1, 2}


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 3},
        {"tile": (44, 44), "batch": 2},
        {"tile": (60, 108)},
        {"tile": (204, 44)},
        {"tile": (44, 60), "max_memory_bytes": 2**29},
    ],
    ids=str,
)
def test_choices_of_cost_do_not_change_the_result(
    tmp_path: Path, volume: Path, fake_artifact: ArtifactFactory, fake_factory: Any, options: dict[str, Any]
) -> None:
    artifact = fake_artifact(classes=3)
    planned = segment(volume, model=artifact, engine_factory=fake_factory)
    other = segment(volume, model=artifact, engine_factory=fake_factory, output=tmp_path / "other.zarr", **options)
    assert (other.plan.tile_y, other.plan.tile_x, other.plan.batch) != (
        planned.plan.tile_y,
        planned.plan.tile_x,
        planned.plan.batch,
    )
    left, right = arrays_of(planned.output), arrays_of(other.output)
    assert set(left) == set(right)
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], strict=True)


@pytest.mark.parametrize("extra", [{}, {"batch": 4}])
def test_one_engine_gets_one_tile_shape(volume: Path, fake_artifact: ArtifactFactory, extra: dict[str, Any]) -> None:
    made: list[FakeEngine] = []

    def factory(artifact: Artifact) -> FakeEngine:
        made.append(FakeEngine(artifact.card.network))
        return made[-1]

    result = segment(volume, model=fake_artifact(), engine_factory=factory, tile=(44, 60), **extra)
    (engine,) = made
    assert {shape[1:] for shape in engine.shapes} == {(1, 44, 60)}
    assert max(shape[0] for shape in engine.shapes) == result.plan.batch
    segment(volume, model=fake_artifact(), engine_factory=factory, overwrite=True)
    assert len(made) == 2  # an engine does not outlive its run


def test_progress_counts_every_block_once(volume: Path, fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    said: list[Progress] = []
    result = segment(volume, model=fake_artifact(), engine_factory=fake_factory, progress=said.append)
    blocks = [p for p in said if p.stage == "segment"]
    assert result.plan.n_blocks == 3
    assert [(p.done, p.total, p.failed) for p in blocks] == [(i + 1, 3, 0) for i in range(3)]
    assert [p.pixels for p in blocks] == [70 * 90 * (i + 1) for i in range(3)]
    assert [p.seconds for p in blocks] == sorted(p.seconds for p in blocks)
    assert blocks[0].seconds > 0
    assert said[: len(blocks)] == blocks


def test_progress_goes_on_in_the_pyramid(tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    # Blocks of one chunk of 1024: their halves are not whole chunks, so the pyramid is made at the end.
    path = tmp_path / "wide.zarr"
    zarr.create_array(path, data=noise(64, 20, 2100), chunks=(64, 20, 1024))
    said: list[Progress] = []
    artifact = fake_artifact(depth=1)
    result = segment(path, model=artifact, engine_factory=fake_factory, progress=said.append, write=["labels"])
    stages = [p.stage for p in said]
    pieces = [p for p in said if p.stage == "pyramid"]
    assert stages == sorted(stages, reverse=True)
    assert [p.done for p in pieces] == list(range(1, len(pieces) + 1))
    assert {p.total for p in pieces} in ({len(pieces)}, set())
    assert len(arrays_of(result.output)) == 4 + 1  # and the image of the blocks' status


# Failures.


class RefusingEngine(FakeEngine):
    """Fails on any batch that holds a given value."""

    def infer(self, batch: Batch) -> Batch:
        if (batch == 255).any():
            raise RuntimeError("out of luck\nand more")
        return super().infer(batch)


class OverflowingEngine(FakeEngine):
    """Gives back NaN wherever it was given something else than grey values."""

    def infer(self, batch: Batch) -> Batch:
        if np.isfinite(batch).all() and batch.max() < 1e20:
            return super().infer(batch)
        return np.full_like(super().infer(np.zeros_like(batch)), np.nan)


class PaddingEngine(FakeEngine):
    """Gives back logits of another size: a bug."""

    def infer(self, batch: Batch) -> Batch:
        return np.pad(super().infer(batch), [(0, 0), (0, 0), (1, 1), (1, 1)])


def test_a_block_that_fails_does_not_stop_the_others(tmp_path: Path, fake_artifact: ArtifactFactory) -> None:
    pixels = np.minimum(noise(14, 20, 24), 254)
    pixels[:12, 5, 5] = 255
    path = write_array(tmp_path / "brain.zarr", pixels)
    said: list[Progress] = []
    with pytest.raises(PartialResultError, match=r"^12 of 14 blocks failed; they are 0 in .*\.ome\.zarr\n") as caught:
        segment(
            path,
            model=fake_artifact(),
            engine_factory=lambda a: RefusingEngine(a.card.network),
            progress=said.append,
            write=["labels"],
        )
    *listed, more = caught.value.details
    assert listed == [f"block {i}: RuntimeError: out of luck" for i in range(10)]
    assert more == "and 2 more, listed in the output's attributes"
    assert said[-1].failed == 12
    output = tmp_path / "brain_segmentation.ome.zarr"
    provenance: Any = zarr.open_group(output, mode="r").attrs["unet_deploy"]
    assert provenance["status"] == "partial"
    assert [f["block"] for f in provenance["failed_blocks"]] == list(range(12))
    assert provenance["failed_blocks"][0]["reason"] == "RuntimeError: out of luck\nand more"
    labels = arrays_of(output)["labels/segmentation/0"]
    assert not labels[:12].any()
    assert labels[12:].any()


@pytest.mark.parametrize(
    ("value", "why", "fix"),
    [
        (np.nan, "the volume holds NaN or infinity there", "replace them in the volume by a grey value"),
        (np.inf, "the volume holds NaN or infinity there", "replace them in the volume by a grey value"),
        (1e30, "its grey values are too large for the network", "check --input-range against the volume"),
    ],
)
def test_what_is_no_number_is_a_failed_block_and_no_class(
    tmp_path: Path, fake_artifact: ArtifactFactory, value: float, why: str, fix: str
) -> None:
    pixels = noise(2, 20, 24, dtype="float32")
    pixels[1, 3, 4] = value
    path = write_array(tmp_path / "brain.zarr", pixels)
    with pytest.raises(PartialResultError, match=r"^1 of 2 blocks failed") as caught:
        segment(
            path,
            model=fake_artifact(dtype="float32"),
            engine_factory=lambda a: OverflowingEngine(a.card.network),
        )
    assert caught.value.details == ("block 1: ValueRangeError: the network's output is not a number there",)
    provenance: Any = zarr.open_group(tmp_path / "brain_segmentation.ome.zarr", mode="r").attrs["unet_deploy"]
    reason = provenance["failed_blocks"][0]["reason"]
    assert reason.splitlines()[1:] == ["  plane z 1, y 0:20, x 0:24", f"  {why}", f"  fix: {fix}"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_no_engine_swallows_what_is_no_number(
    tmp_path: Path, tiny_artifact: Artifact, value: float, engine: str
) -> None:
    """OpenVINO makes 0 of NaN where it cuts off negative values, and its logits are numbers again."""
    if importlib.util.find_spec(engine.partition("-")[0]) is None:
        pytest.skip(f"{engine} is not installed")
    pixels = noise(2, 60, 64, dtype="float32")
    pixels[1, 30, 40] = value
    path = write_array(tmp_path / "brain.zarr", pixels)
    with pytest.raises(PartialResultError, match=r"^1 of 2 blocks failed") as caught:
        segment(path, model=tiny_artifact, engine=engine, input_range=(0.0, 1.0))
    assert caught.value.details == ("block 1: ValueRangeError: the network's output is not a number there",)


def test_a_bug_of_ours_stops_the_run_and_shows_itself(volume: Path, fake_artifact: ArtifactFactory) -> None:
    with pytest.raises(AssertionError):
        segment(volume, model=fake_artifact(), engine_factory=lambda a: PaddingEngine(a.card.network))
    provenance: Any = zarr.open_group(default_output(volume), mode="r").attrs["unet_deploy"]
    assert provenance["status"] == "running"  # never looks like a result


# Schedulers.


def test_a_client_of_the_callers_own_is_used_and_left_open(
    tmp_path: Path, volume: Path, fake_artifact: ArtifactFactory, fake_factory: Any
) -> None:
    artifact = fake_artifact(classes=3)
    alone = segment(volume, model=artifact, engine_factory=fake_factory)
    threads: set[str] = set()

    class Watching(FakeEngine):
        def infer(self, batch: Batch) -> Batch:
            threads.add(threading.current_thread().name)
            return super().infer(batch)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        shared = segment(
            volume,
            model=artifact,
            engine_factory=lambda a: Watching(a.card.network),
            output=tmp_path / "shared.zarr",
            scheduler=client,
        )
        assert client.submit(sum, [1, 2]).result() == 3
    assert threads
    assert threading.current_thread().name not in threads
    left, right = arrays_of(alone.output), arrays_of(shared.output)
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], strict=True)


def test_a_scheduler_is_reached_by_its_address(volume: Path, fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        protocol="tcp",
        host="127.0.0.1",
    ) as cluster:
        result = segment(
            volume, model=fake_artifact(), engine_factory=fake_factory, scheduler=cluster.scheduler_address
        )
    assert result.failed == ()


def test_a_scheduler_without_workers_is_refused() -> None:
    with LocalCluster(
        n_workers=0, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp", host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        with (
            pytest.raises(SchedulerError, match=rf"^the Dask scheduler at {address} has no workers\n") as caught,
            connect(address),
        ):
            raise AssertionError("unreachable")
    assert caught.value.fix == (f"start one where the volume can be read: dask worker {address} --nthreads 2")


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("tcp://127.0.0.1:1", marks=pytest.mark.slow),  # is tried for ten seconds
        "nowhere",
        "http://127.0.0.1:1",
        "tcp://127.0.0.1:x",
        "tls://127.0.0.1:1",  # there are no certificates
        " tcp://127.0.0.1:1",
    ],
)
def test_a_scheduler_that_does_not_answer_is_refused(address: str) -> None:
    with (
        dask.config.set(scheduler="threads"),
        pytest.raises(SchedulerError, match=rf"^no Dask scheduler answers at {address}\n  \w+: ") as caught,
        connect(address),
    ):
        raise AssertionError("unreachable")
    assert "leave --scheduler out" in caught.value.fix


def test_a_client_that_cannot_be_started_is_closed() -> None:
    """Its finaliser would wait for a lock that distributed holds while it starts another client."""

    def clients() -> list[Client]:
        return [thing for thing in gc.get_objects() if issubclass(type(thing), Client)]

    before = {id(client): client for client in clients()}
    with pytest.raises(SchedulerError) as caught, connect("nowhere"):
        raise AssertionError("unreachable")
    assert caught.value.__cause__ is not None  # its frames keep the client
    assert [client.status for client in clients() if id(client) not in before] == ["closed"]


@pytest.mark.parametrize("where", ["here", "nowhere"])
def test_the_callers_own_dask_is_left_alone(
    volume: Path, fake_artifact: ArtifactFactory, fake_factory: Any, where: str
) -> None:
    """A client that is made the default takes over the caller's other computations; a failed one breaks them."""
    seen: list[str] = []

    def look(_: Progress) -> None:
        seen.append(dask.config.get("scheduler"))

    with dask.config.set(scheduler="threads"):
        if where == "here":
            segment(volume, model=fake_artifact(), engine_factory=fake_factory, progress=look)
        else:
            with pytest.raises(SchedulerError, match=r"^no Dask scheduler"), connect("nowhere"):
                raise AssertionError("unreachable")
        seen.append(dask.config.get("scheduler"))
    assert set(seen) == {"threads"}
