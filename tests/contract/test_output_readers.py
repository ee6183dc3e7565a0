"""Every kind of output is valid OME-Zarr, and ome-zarr-py finds its image, its labels and their pyramids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Node, Reader

from tests.contract.test_output import CLASSES, Store, write_volume
from unet_deploy.runtime import segment

RAGGED = {"t": 2, "c": 2, "z": 3, "y": 45, "x": 1037}  # no side is whole chunks; two levels below the finest


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is segmented, and what is asked for."""

    store: Store
    into: str | None = None

    def __str__(self) -> str:
        return f"{self.store}{'-into-labels' if self.into else ''}"


CASES = [
    Case(store=Store(version="0.4", axes="yx")),
    Case(store=Store(version="0.5", axes="yx", write=("labels",))),
    Case(store=Store(version="0.5", axes="zyx", write=("labels", "probabilities", "instances"))),
    Case(store=Store(version="0.4", axes="tyx", write=("labels", "instances"))),
    Case(store=Store(version="0.4", axes="cyx", write=("probabilities",))),
    Case(store=Store(version="0.5", axes="czyx", write=("probabilities",))),
    Case(store=Store(version="0.5", axes="tczyx", sharded=True, write=("labels", "probabilities", "instances"))),
    Case(store=Store(version="0.4", axes="tczyx")),
    Case(store=Store(version="0.4", axes="zyx", write=("labels",)), into="cells"),
    Case(store=Store(version="0.5", axes="czyx", write=("labels", "instances")), into="cells"),
    Case(store=Store(version="0.4", axes="tczyx", write=("labels", "instances")), into="cells"),
    Case(store=Store(version="0.5", axes="yx", sharded=True, write=("labels",)), into="cells"),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def done(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fake_artifact: Any, fake_factory: Any
) -> tuple[Case, Path]:
    """Return a case, and the store that holds its result: its own, or the volume; not to be changed."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp("run")
    source, target = folder / "brain.ome.zarr", folder / "result.ome.zarr"
    write_volume(source, case.store, RAGGED)
    artifact = fake_artifact(depth=2, classes=CLASSES, in_channels=RAGGED["c"] if "c" in case.store.axes else 1)
    place = {"output": target} if case.into is None else {"into_labels": case.into}
    segment(source, model=artifact, write=case.store.write, engine_factory=fake_factory, **place)
    return case, target if case.into is None else source


def label_names(case: Case) -> list[str]:
    names = ["segmentation", "instances"] if case.into is None else [case.into, f"{case.into}_instances"]
    return [name for name, kind in zip(names, ("labels", "instances"), strict=True) if kind in case.store.write]


def n_levels(case: Case) -> int:
    """Return the levels of the result: its own choice, or as many as the volume has."""
    return 3 if case.into is None else 1


def test_it_is_valid(done: tuple[Case, Path]) -> None:
    case, path = done
    models: Any = ome_zarr_models.v04 if case.store.version == "0.4" else ome_zarr_models.v05
    root = zarr.open_group(path, mode="r")
    models.Image.from_zarr(root)
    if not label_names(case):
        assert "labels" not in root
        return
    models.Labels.from_zarr(root["labels"])
    holder: Any = root["labels"].attrs.asdict()
    assert holder.get("ome", holder)["labels"] == label_names(case)
    for name in label_names(case):
        group: Any = root[f"labels/{name}"]
        label = models.ImageLabel.from_zarr(group)
        ome = label.attributes if case.store.version == "0.4" else label.ome_attributes
        (multiscale,) = ome.multiscales
        assert [axis.name for axis in multiscale.axes] == [*case.store.kept]
        assert len(multiscale.datasets) == n_levels(case)
        assert np.issubdtype(group["0"].dtype, np.integer)


def read_nodes(path: Path) -> dict[str, Node]:
    """Return what ome-zarr-py finds, by path inside the store."""
    location = parse_url(path)
    assert location is not None
    nodes = {}
    for node in Reader(location)():
        inside = Path(str(node.zarr.path)).resolve().relative_to(path.resolve()).as_posix()
        nodes[inside] = node
    return nodes


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ome_zarr")
def test_ome_zarr_py_opens_it(done: tuple[Case, Path]) -> None:
    case, path = done
    nodes = read_nodes(path)
    names = [f"labels/{name}" for name in label_names(case)]
    assert {"." if name == "" else name for name in nodes if nodes[name].data} == {".", *names}
    sizes = RAGGED | {"c": CLASSES}
    for inside, node in nodes.items():
        if not node.data:
            continue
        group = zarr.open_group(path / inside, mode="r")
        prefix = ""
        if inside == "." and "probabilities" not in case.store.write and case.into is None:
            prefix = "labels/segmentation/"  # the image is that of the labels
        if inside == "." and case.into is not None:
            continue  # the volume's own
        axes = case.store.kept if inside != "." or prefix else "".join(a for a in "tczyx" if a in case.store.kept + "c")
        assert len(node.data) == n_levels(case)
        for level, data in enumerate(node.data):
            factor = {a: 2**level if a in "yx" else 1 for a in axes}
            assert data.shape == tuple(-(-sizes[a] // factor[a]) for a in axes)
            stored: Any = group[f"{prefix}{level}"]
            np.testing.assert_array_equal(np.asarray(data), np.asarray(stored[...]))
        assert node.data[0].max() > 0
        assert "".join(axis["name"] for axis in node.metadata["axes"]) == axes


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ome_zarr")
def test_ome_zarr_py_sees_the_colours_of_classes(done: tuple[Case, Path]) -> None:
    case, path = done
    nodes = read_nodes(path)
    if "labels" not in case.store.write:
        assert not any(name.startswith("labels") for name in nodes)
        return
    node = nodes[f"labels/{label_names(case)[0]}"]
    colours = node.metadata["color"]
    assert {*colours} == {*range(CLASSES)}
    assert all(colour[3] == 1 for colour in colours.values())
