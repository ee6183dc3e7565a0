"""Every output that can be asked for is valid OME-Zarr, holds what the network said, and opens without us."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import zarr

from tests.contract.volumes import write_group
from unet_deploy.card_json import card_to_object
from unet_deploy.errors import PartialResultError
from unet_deploy.runtime import segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.normalise import to_labels, to_probabilities
from unet_deploy.runtime.ome import LevelTransform, multiscales_attributes

Array = npt.NDArray[Any]
Kinds = tuple[str, ...]
EXTENTS = {"t": 2, "c": 2, "z": 3, "y": 33, "x": 70}
CHUNKS = {"t": 1, "c": 1, "z": 2, "y": 32, "x": 16}
SCALE = {"t": 0.5, "c": 1.0, "z": 50.0, "y": 4.0, "x": 6.0}
ORIGIN = {"t": 3.0, "c": 0.0, "z": -100.0, "y": 1000.0, "x": 0.25}
UNITS = {"t": "second", "c": None, "z": "nanometer", "y": "nanometer", "x": "micrometer"}
BOTH: Kinds = ("labels", "probabilities")
CLASSES = 3


@dataclass(frozen=True, kw_only=True)
class Store:
    """An input volume of some kind, and what was asked of it."""

    version: Literal["0.4", "0.5"]
    axes: str
    sharded: bool = False
    write: Kinds = BOTH

    @property
    def kept(self) -> str:
        return self.axes.replace("c", "")

    def __str__(self) -> str:
        return f"{self.version}-{self.axes}{'-sharded' * self.sharded}-{'+'.join(self.write)}"


STORES = [
    Store(version="0.4", axes="yx"),
    Store(version="0.5", axes="yx"),
    Store(version="0.4", axes="zyx", write=("labels",)),
    Store(version="0.5", axes="zyx", write=("probabilities",)),
    Store(version="0.5", axes="tyx", write=("labels",)),
    Store(version="0.4", axes="cyx"),
    Store(version="0.5", axes="czyx"),
    Store(version="0.4", axes="tczyx"),
    Store(version="0.5", axes="tczyx", sharded=True),
    Store(version="0.5", axes="zyx", sharded=True, write=("labels",)),
    Store(version="0.4", axes="tzyx", write=("probabilities",)),
]


def write_volume(path: Path, store: Store, extents: dict[str, int] = EXTENTS, *, seed: int = 0) -> Array:
    """Write an OME-Zarr image of random pixels and return them."""
    shape = tuple(extents[axis] for axis in store.axes)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    attributes = multiscales_attributes(
        version=store.version,
        name="brain",
        axes=store.axes,
        units=[UNITS[axis] for axis in store.axes],
        levels=[
            LevelTransform(
                path="s0",
                scale=tuple(SCALE[axis] for axis in store.axes),
                translation=tuple(ORIGIN[axis] for axis in store.axes),
            )
        ],
        type_="mean",
    )
    write_group(path, attributes, zarr_format=2 if store.version == "0.4" else 3)
    chunks = tuple(min(CHUNKS[axis], n) for axis, n in zip(store.axes, shape, strict=True))
    zarr.create_array(
        path / "s0",
        data=pixels,
        chunks=chunks,
        shards=tuple(c * 2 if a in "yx" else c for a, c in zip(store.axes, chunks, strict=True))
        if store.sharded
        else None,
        zarr_format=2 if store.version == "0.4" else 3,
        dimension_names=list(store.axes) if store.version == "0.5" else None,
    )
    return pixels


def expected_logits(pixels: Array, axes: str, engine: FakeEngine, depth: int) -> Array:
    """Return one pass over each whole plane, mirrored by numpy: logits (t, z, k, y, x)."""
    full = pixels.reshape([dict(zip(axes, pixels.shape, strict=True)).get(a, 1) for a in "tczyx"])
    divisor, context = 2**depth, 6 * 2**depth - 4
    padding = [(context, -n % divisor + context + 4 % divisor) for n in full.shape[-2:]]
    planes = np.pad(full, [(0, 0)] * 3 + padding, mode="reflect").astype(np.float32)
    y, x = full.shape[-2:]
    return np.stack([engine.infer(np.moveaxis(moment, 1, 0)) for moment in planes])[..., :y, :x]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished segmentation."""

    store: Store
    path: Path
    pixels: Array
    artifact: Artifact

    @property
    def root(self) -> zarr.Group:
        return zarr.open_group(self.path, mode="r")

    @property
    def ome(self) -> dict[str, Any]:
        return self.ome_of("")

    def ome_of(self, group: str) -> dict[str, Any]:
        """Return the OME attributes of a group, wherever its version keeps them."""
        attributes = zarr.open_group(self.path, path=group, mode="r").attrs.asdict()
        return attributes["ome"] if self.store.version == "0.5" else attributes

    def array(self, path: str) -> Array:
        return np.asarray(zarr.open_array(self.path, path=path, mode="r")[...])

    def logits(self) -> Array:
        network = self.artifact.card.network
        return expected_logits(self.pixels, self.store.axes, FakeEngine(network), network.depth)


def segment_store(
    folder: Path, store: Store, make_artifact: Any, factory: Any, extents: dict[str, int], **options: Any
) -> Run:
    source, target = folder / "brain.ome.zarr", folder / "result.ome.zarr"
    pixels = write_volume(source, store, extents)
    artifact = make_artifact(depth=2, classes=CLASSES, in_channels=extents["c"] if "c" in store.axes else 1)
    segment(source, model=artifact, output=target, write=store.write, engine_factory=factory, **options)
    return Run(store=store, path=target, pixels=pixels, artifact=artifact)


@pytest.fixture
def run(tmp_path: Path, fake_artifact: Any, fake_factory: Any) -> Callable[..., Run]:
    """Return what segments a store of given extents."""
    return lambda store, extents=EXTENTS, **options: segment_store(
        tmp_path, store, fake_artifact, fake_factory, extents, **options
    )


@pytest.fixture(scope="module", params=STORES, ids=str)
def done(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fake_artifact: Any, fake_factory: Any
) -> Run:
    """Return each kind of store, segmented once; not to be changed."""
    return segment_store(tmp_path_factory.mktemp("run"), request.param, fake_artifact, fake_factory, EXTENTS)


# The values.


def test_the_arrays_hold_what_the_network_said(done: Run) -> None:
    store = done.store
    logits = done.logits()
    moments = [[(to_labels(plane), to_probabilities(plane)) for plane in moment] for moment in logits]
    shape = tuple(EXTENTS[axis] for axis in store.kept)
    arrays = {name for name, node in done.root.members(max_depth=None) if isinstance(node, zarr.Array)}
    if "labels" in store.write:
        labels = np.stack([np.stack([found[0] for found in moment]) for moment in moments])  # (t, z, y, x)
        np.testing.assert_array_equal(done.array("labels/segmentation/0"), labels.reshape(shape), strict=True)
        assert set(np.unique(labels)) == {0, 1, 2}
    if "probabilities" in store.write:
        found = np.stack([np.stack([found[1] for found in moment], axis=1) for moment in moments])  # (t, c, z, y, x)
        sizes = EXTENTS | {"c": CLASSES}
        axes = [axis for axis in "tczyx" if axis in (*store.kept, "c")]
        np.testing.assert_array_equal(done.array("0"), found.reshape([sizes[a] for a in axes]), strict=True)
    paths = {"labels": "labels/segmentation/0", "probabilities": "0"}
    assert arrays - {"unet_deploy_run"} == {paths[kind] for kind in store.write}


def test_arrays_are_stored_like_the_input(done: Run) -> None:
    store = done.store
    for path in ("labels/segmentation/0", "0"):
        if path not in done.root:
            continue
        array = zarr.open_array(done.path, path=path, mode="r")
        axes = store.kept if path != "0" else "".join(a for a in "tczyx" if a in store.kept + "c")
        assert array.metadata.zarr_format == (2 if store.version == "0.4" else 3)
        assert array.dtype == np.uint8
        assert array.fill_value == 0
        expected = {"t": 1, "c": 1, "z": 2, "y": 36, "x": 64}  # 32 and 16 are below the smallest; 33 rounds up to 36
        assert array.chunks == tuple(expected[axis] for axis in axes)
        if store.sharded:
            assert array.shards is not None
            assert all(s % c == 0 for s, c in zip(array.shards, array.chunks, strict=True))
        else:
            assert array.shards is None
        if store.version == "0.5":
            assert array.metadata.dimension_names == tuple(axes)  # type: ignore[union-attr]


# The metadata.


def test_the_metadata_is_valid(done: Run) -> None:
    store = done.store
    models: Any = ome_zarr_models.v04 if store.version == "0.4" else ome_zarr_models.v05
    image = models.Image.from_zarr(done.root)  # checks that the arrays are there, with as many axes
    attributes = image.attributes if store.version == "0.4" else image.ome_attributes
    (multiscale,) = attributes.multiscales
    main = "probabilities" if "probabilities" in store.write else "labels"
    axes = store.kept if main == "labels" else "".join(a for a in "tczyx" if a in store.kept + "c")
    assert [axis.name for axis in multiscale.axes] == [*axes]
    assert multiscale.type == ("mean" if main == "probabilities" else "mode")
    if "labels" not in store.write:
        assert "labels" not in done.root
        return
    assert done.ome_of("labels")["labels"] == ["segmentation"]
    label_group = zarr.open_group(done.path, path="labels/segmentation", mode="r")
    label = models.ImageLabel.from_zarr(label_group)
    label_attributes = label.attributes if store.version == "0.4" else label.ome_attributes
    assert [axis.name for axis in label_attributes.multiscales[0].axes] == [*store.kept]
    assert label_attributes.multiscales[0].type == "mode"
    labels = models.Labels.from_zarr(zarr.open_group(done.path, path="labels", mode="r"))
    assert labels is not None


def test_classes_have_their_names_and_colours(done: Run) -> None:
    store = done.store
    classes = done.artifact.card.classes
    if "labels" in store.write:
        label = done.ome_of("labels/segmentation")["image-label"]
        rgba = [[*bytes.fromhex(c.colour[1:]), 255] for c in classes]
        assert label["colors"] == [{"label-value": i, "rgba": colour} for i, colour in enumerate(rgba)]
        assert label["properties"] == [{"label-value": i, "name": c.name} for i, c in enumerate(classes)]
        assert label.get("source") == ({"image": "../../"} if "probabilities" in store.write else None)
    if "probabilities" in store.write:
        channels = done.ome["omero"]["channels"]
        assert [channel["label"] for channel in channels] == [c.name for c in classes]
        assert [channel["color"] for channel in channels] == [c.colour[1:].upper() for c in classes]
        assert [channel["active"] for channel in channels] == [False, True, True]
        assert all(channel["window"] == {"min": 0, "max": 255, "start": 0, "end": 255} for channel in channels)
    else:
        assert "omero" not in done.ome


def test_the_sources_place_and_scale_are_carried(done: Run) -> None:
    store = done.store
    groups = [""] + ["labels/segmentation"] * ("labels" in store.write)
    for group in groups:
        (multiscale,) = done.ome_of(group)["multiscales"]
        axes = [axis["name"] for axis in multiscale["axes"]]
        assert [axis.get("unit") for axis in multiscale["axes"]] == [UNITS[axis] for axis in axes]
        (dataset,) = multiscale["datasets"]
        assert dataset["coordinateTransformations"] == [
            {"type": "scale", "scale": [SCALE[axis] for axis in axes]},
            {"type": "translation", "translation": [ORIGIN[axis] for axis in axes]},
        ]
        prefix = "labels/segmentation/" if group == "" and "probabilities" not in store.write else ""
        assert dataset["path"] == f"{prefix}0"
        assert (multiscale["name"] == "brain") == (group == "" and "probabilities" in store.write)


def test_a_bare_array_has_no_place(tmp_path: Path, fake_artifact: Any, fake_factory: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    zarr.create_array(tmp_path / "bare.zarr", data=pixels)
    result = segment(tmp_path / "bare.zarr", model=fake_artifact(), engine_factory=fake_factory)
    assert result.output == tmp_path / "bare_segmentation.ome.zarr"
    (multiscale,) = zarr.open_group(result.output, mode="r").attrs.asdict()["ome"]["multiscales"]
    assert multiscale["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 1.0, 1.0]},
        {"type": "translation", "translation": [0.0, 0.0, 0.0]},
    ]
    assert all("unit" not in axis for axis in multiscale["axes"])


# The pyramid.


def most_frequent(cell: Array) -> int:
    """Return the most frequent value of a cell; on a tie the one that comes first in reading order."""
    values = cell.ravel().tolist()
    return int(max(values, key=lambda v: (values.count(v), -values.index(v))))


def cells(values: Array) -> Array:
    """Return (..., y', x', 4): 2x2 cells in reading order, an odd last row and column repeated."""
    values = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, n % 2) for n in values.shape[-2:]], mode="edge")
    return np.stack([values[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)


@pytest.mark.parametrize(
    ("version", "y", "x", "sides"),
    [
        ("0.5", 37, 1031, [(37, 1031), (19, 516), (10, 258)]),
        ("0.4", 1025, 21, [(1025, 21), (513, 11), (257, 6)]),
        ("0.5", 40, 1024, [(40, 1024), (20, 512)]),
        ("0.5", 512, 9, [(512, 9)]),
    ],
)
def test_each_level_is_made_of_the_one_above(
    run: Callable[..., Run], version: Any, y: int, x: int, sides: list[tuple[int, int]]
) -> None:
    done = run(Store(version=version, axes="zyx"), EXTENTS | {"z": 2, "y": y, "x": x})
    for prefix, planes in (("labels/segmentation/", (2,)), ("", (CLASSES, 2))):
        levels = [done.array(f"{prefix}{level}") for level in range(len(sides))]
        assert [level.shape for level in levels] == [(*planes, *side) for side in sides]
        assert f"{prefix}{len(sides)}" not in done.root
        for above, below in itertools.pairwise(levels):
            groups = cells(above)
            if prefix:
                expected = np.apply_along_axis(most_frequent, -1, groups)
            else:
                expected = np.floor(groups.mean(axis=-1) + 0.5)
            np.testing.assert_array_equal(below, expected)


def test_levels_lie_where_their_pixels_are(run: Callable[..., Run]) -> None:
    store = Store(version="0.5", axes="zyx")
    done = run(store, EXTENTS | {"z": 1, "y": 30, "x": 1030})
    for group, axes in (("", "czyx"), ("labels/segmentation", "zyx")):
        (multiscale,) = done.ome_of(group)["multiscales"]
        assert [dataset["path"] for dataset in multiscale["datasets"]] == ["0", "1", "2"]
        for level, dataset in enumerate(multiscale["datasets"]):
            scale, translation = (step[step["type"]] for step in dataset["coordinateTransformations"])
            factor = {axis: 2**level if axis in "yx" else 1 for axis in axes}
            assert scale == [SCALE[axis] * factor[axis] for axis in axes]
            # The first pixel of the level is the mean of its pixels' centres 0 .. 2**level - 1.
            centre = [np.mean([ORIGIN[a] + SCALE[a] * i for i in range(factor[a])]) for a in axes]
            assert translation == pytest.approx(centre, rel=1e-12)
    image = ome_zarr_models.v05.Image.from_zarr(done.root)
    assert len(image.ome_attributes.multiscales[0].datasets) == 3


@pytest.mark.parametrize("chunk", [64, 512, 1024])
def test_many_blocks_make_one_pyramid(tmp_path: Path, fake_artifact: Any, fake_factory: Any, chunk: int) -> None:
    # Narrow chunks: blocks make most levels. Wide ones: most are made at the end.
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4500), dtype=np.uint8)
    zarr.create_array(tmp_path / "wide.zarr", data=pixels, chunks=(30, chunk))
    artifact = fake_artifact(depth=1, classes=3)
    result = segment(tmp_path / "wide.zarr", model=artifact, engine_factory=fake_factory, axes="yx", tile=(44, 1012))
    assert result.plan.n_blocks == 3
    for path, ndim in (("labels/segmentation/", 2), ("", 3)):
        levels = [
            np.asarray(zarr.open_array(result.output, path=f"{path}{level}", mode="r")[...]) for level in range(5)
        ]
        assert [level.shape[-1] for level in levels] == [4500, 2250, 1125, 563, 282]
        for above, below in itertools.pairwise(levels):
            groups = cells(above)
            mode = np.apply_along_axis(most_frequent, -1, groups)
            np.testing.assert_array_equal(below, mode if ndim == 2 else np.floor(groups.mean(axis=-1) + 0.5))


# The state of a run.


def test_the_provenance_says_what_was_done(run: Callable[..., Run]) -> None:
    done = run(Store(version="0.5", axes="czyx"), tile=(44, 60), batch=2)
    said: Any = done.root.attrs["unet_deploy"]
    assert said["status"] == "complete"
    assert said["failed_blocks"] == []
    assert said["model"]["sha256"] == done.artifact.sha256
    card = card_to_object(replace(done.artifact.card, test_tensor=None))
    assert said["model"]["card"] == json.loads(json.dumps(card))
    assert said["model"]["classes"] == [c.name for c in done.artifact.card.classes]
    assert said["engine"]["engine"] == "fake"
    assert said["volume"]["path"] == str(done.path.parent / "brain.ome.zarr")
    assert (said["volume"]["array"], said["volume"]["axes"], said["volume"]["dtype"]) == ("s0", "czyx", "uint8")
    assert said["volume"]["shape"] == [EXTENTS[axis] for axis in "czyx"]
    assert said["parameters"] == {
        "channels": [0, 1],
        "input_range": None,
        "tta": False,
        "write": ["labels", "probabilities"],
    }
    assert (said["plan"]["tile"], said["plan"]["batch"]) == ([44, 60], 2)
    labels = done.array("labels/segmentation/0")
    shares = {c.name: (labels == i).mean() for i, c in enumerate(done.artifact.card.classes)}
    assert said["class_fractions"] == pytest.approx(shares)
    assert {"software", "python", "platform", "started", "seconds"} <= set(said)
    assert {"unet-deploy", "numpy", "zarr"} <= set(said["software"])
    assert said["engine"].keys() >= {"engine", "provider", "device", "versions"}
    assert said["seconds"]["total"] >= said["seconds"]["blocks"] > 0


def test_a_failed_block_is_a_hole_that_is_said(tmp_path: Path, fake_artifact: Any, fake_factory: Any) -> None:
    store = Store(version="0.5", axes="zyx")
    source, target = tmp_path / "brain.ome.zarr", tmp_path / "result.ome.zarr"
    write_volume(source, store, EXTENTS | {"z": 5})
    chunks = sorted((source / "s0" / "c" / "1").rglob("*"))  # planes 2 and 3
    for path in chunks:
        if path.is_file():
            path.write_bytes(b"not zstd")
    with pytest.raises(
        PartialResultError, match=r"^1 of 3 blocks failed; they are 0 in .*result\.ome\.zarr\n"
    ) as caught:
        segment(source, model=fake_artifact(classes=3), output=target, engine_factory=fake_factory)
    assert caught.value.details[0].startswith("block 1: ReadError: the window z 2:4, y 0:33, x 0:70 cannot be read")
    assert caught.value.fix == "mend the cause, then give the same command with --retry-failed"
    root = zarr.open_group(target, mode="r")
    said: Any = root.attrs["unet_deploy"]
    assert said["status"] == "partial"
    (failure,) = said["failed_blocks"]
    assert failure["block"] == 1
    assert "cannot be read" in failure["reason"]
    labels = np.asarray(zarr.open_array(target, path="labels/segmentation/0", mode="r")[...])
    assert (labels[2:4] == 0).all()
    assert all(labels[z].any() for z in (0, 1, 4))
    ome_zarr_models.v05.Image.from_zarr(root)


def test_the_input_is_not_changed(run: Callable[..., Run]) -> None:
    done = run(Store(version="0.4", axes="zyx"))
    source = done.path.parent / "brain.ome.zarr"
    np.testing.assert_array_equal(zarr.open_array(source, path="s0", mode="r")[...], done.pixels)
    assert {path.name for path in source.iterdir()} == {".zgroup", ".zattrs", "s0"}
