"""Labels in the volume's own group: where they may go, what is refused, and that nothing else in the volume changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import zarr

from tests.contract.volumes import write_group
from unet_deploy.card import ClassInfo
from unet_deploy.errors import (
    ConfigurationError,
    OutputBusyError,
    OutputExistsError,
    OutputPathError,
    UnsupportedMetadataError,
)
from unet_deploy.geometry import Interval
from unet_deploy.runtime import open_volume
from unet_deploy.runtime._instance_output import create_instances
from unet_deploy.runtime.disk_space import check_space
from unet_deploy.runtime.instances import InstanceRule, default_table, finish_instances, number_instances
from unet_deploy.runtime.journal import BlockRecord, create_journal, reopen_journal
from unet_deploy.runtime.label_group import is_made_for, list_label, require_label_target
from unet_deploy.runtime.layout import PROVENANCE_KEY, OutputSpec, split_kinds
from unet_deploy.runtime.ome import LevelTransform, OmeVersion, multiscales_attributes
from unet_deploy.runtime.output import (
    create_output,
    downsample_region,
    finish_output,
    list_regions,
    mark_running,
    write_block,
    write_status,
)
from unet_deploy.runtime.output_paths import check_output_path, is_stillborn, read_provenance, remove_partial_files
from unet_deploy.runtime.place import Place, require_objects_fit
from unet_deploy.runtime.plan import Extents, WriteGrid
from unet_deploy.runtime.pyramid import reduce_mode
from unet_deploy.runtime.resume import Begun, find_begun, is_unborn
from unet_deploy.runtime.scheduling import connect

VERSIONS: tuple[OmeVersion, OmeVersion] = ("0.4", "0.5")
SHAPE = (2, 30, 600)


@pytest.fixture(params=VERSIONS)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An OME-Zarr image of axes czyx."""
    return write_image(tmp_path / "brain.zarr", request.param)


def write_image(path: Path, version: OmeVersion, *, n_levels: int = 2) -> Path:
    levels = [
        LevelTransform(path=str(i), scale=(1.0, 5.0, 2.0 * 2**i, 2.0 * 2**i), translation=None) for i in range(n_levels)
    ]
    attributes = multiscales_attributes(
        version=version, name="brain", axes="czyx", units=(None,) * 4, levels=levels, type_="mean"
    )
    zarr_format = 2 if version == "0.4" else 3
    write_group(path, attributes, zarr_format=zarr_format)
    data = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    names = ["c", "z", "y", "x"] if zarr_format == 3 else None
    for i, level in enumerate(levels):
        values = data[:, :, :: 2**i, :: 2**i]
        chunks = (1, 1, 30, 100)
        zarr.create_array(path / level.path, data=values, chunks=chunks, zarr_format=zarr_format, dimension_names=names)
    return path


def spec_at(target: Path, **changes: Any) -> OutputSpec:
    info = open_volume(target.parents[1]).info
    spec = OutputSpec(
        path=str(target),
        zarr_format=2 if info.zarr_format == 2 else 3,
        ome_version="0.4" if info.zarr_format == 2 else "0.5",
        kinds=("labels",),
        name=info.name,
        axes="zyx",
        extents=Extents(t=1, z=2, y=30, x=600),
        grid=WriteGrid(chunk=(1, 32, 100)),
        block=(1, 32, 200),
        classes=(ClassInfo(name="a", colour="#000000"), ClassInfo(name="b", colour="#ff0000")),
        scale=(5.0, 2.0, 2.0),
        translation=(0.0, 0.0, 0.0),
        units=(None, None, None),
        is_label_group=True,
        volume_levels=len(info.levels),
    )
    return replace(spec, **changes)


def write_everything(spec: OutputSpec, labels: Any) -> None:
    """Write all blocks, as a run does."""
    for x in range(0, SHAPE[2], 200):
        write_block(
            spec,
            t=0,
            z=Interval(0, 2),
            y=Interval(0, 30),
            x=Interval(x, x + 200),
            labels=labels[:, :, x : x + 200],
            probabilities=None,
        )


def make_labels() -> Any:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 4:9, 3:-3] = 1  # through all blocks
    labels[1, 20, 250] = 1
    return labels


def run(volume: Path, name: str = "cells", *, overwrite: bool = False, status: str = "complete") -> OutputSpec:
    """Do what a segmentation does of its output."""
    target = require_label_target(open_volume(volume).info, name)
    check_output_path(target, volume=volume, overwrite=overwrite, is_label_group=True)
    spec = spec_at(target)
    with create_output(spec, fingerprint={}, provenance={"model": "m"}, overwrite=overwrite) as journal:
        write_everything(spec, make_labels())
        for index in range(6):
            journal.add(BlockRecord(index=index, status="done"))
        write_status(spec, journal)
        finish_output(spec, provenance={"status": status}, source=None)
    return spec


def fingerprint(volume: Path, *without: str) -> dict[str, str]:
    """Return a hash of every file of the volume but those below `without` (as posix paths)."""
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(volume.rglob("*"))
        if file.is_file() and not (name := file.relative_to(volume).as_posix()).startswith(without)
    }


def listed(volume: Path) -> list[str]:
    attributes = zarr.open_group(volume / "labels", mode="r").attrs.asdict()
    found: Any = attributes.get("ome", attributes)
    return list(found["labels"])


# What is written.


def test_labels_go_into_the_volume_and_nothing_else_changes(volume: Path) -> None:
    before = fingerprint(volume)
    spec = run(volume)
    assert fingerprint(volume, "labels/") == before
    assert {path.name for path in (volume / "labels").iterdir()} <= {"cells", "zarr.json", ".zgroup", ".zattrs"}
    models: Any = ome_zarr_models.v04 if spec.zarr_format == 2 else ome_zarr_models.v05
    root = zarr.open_group(volume, mode="r")
    assert root.metadata.zarr_format == zarr.open_group(spec.path, mode="r").metadata.zarr_format
    assert models.Image.from_zarr(root).labels is not None
    assert models.Labels.from_zarr(root["labels"]) is not None
    models.ImageLabel.from_zarr(root["labels/cells"])
    assert listed(volume) == ["cells"]
    attributes: Any = root["labels/cells"].attrs.asdict()
    ome = attributes.get("ome", attributes)
    assert ome["image-label"]["source"] == {"image": "../../"}
    assert [c["rgba"] for c in ome["image-label"]["colors"]] == [[0, 0, 0, 255], [255, 0, 0, 255]]
    (multiscale,) = ome["multiscales"]
    assert multiscale["name"] == "cells"
    assert [d["path"] for d in multiscale["datasets"]] == ["0", "1"]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [5.0, 2.0, 2.0]
    np.testing.assert_array_equal(np.asarray(root["labels/cells/0"][...]), make_labels())  # type: ignore[index]
    assert read_provenance(Path(spec.path)) == {"status": "complete"}
    status = zarr.open_array(spec.path, path="unet_deploy_run", mode="r")
    assert np.asarray(status[...]).tolist() == [[[[1, 1, 1]]] * 2]
    again = open_volume(volume / "labels" / "cells")
    assert again.info.axes == "zyx"


def test_other_labels_and_attributes_stay(volume: Path) -> None:
    labels = volume / "labels"
    is_v2 = (volume / ".zgroup").exists()
    listing: dict[str, Any] = {"labels": ["theirs"], "note": "précieux"}
    attributes = listing if is_v2 else {"ome": {"version": "0.5", **listing}, "else": [1.5, None]}
    write_group(labels, attributes, zarr_format=2 if is_v2 else 3)
    write_group(labels / "theirs", {"a": 1}, zarr_format=2 if is_v2 else 3)
    before = fingerprint(volume, "labels/zarr.json", "labels/.zattrs")
    run(volume)
    after = zarr.open_group(labels, mode="r").attrs.asdict()
    wanted = {"labels": ["theirs", "cells"], "note": "précieux"}
    assert after == (wanted if is_v2 else {"ome": {"version": "0.5", **wanted}, "else": [1.5, None]})
    assert fingerprint(volume, "labels/zarr.json", "labels/.zattrs", "labels/cells/") == before
    assert not [*volume.rglob("*.partial")]


def test_two_models_label_one_volume(volume: Path) -> None:
    run(volume, "cells")
    before = fingerprint(volume, "labels/zarr.json", "labels/.zattrs")
    run(volume, "membranes")
    assert listed(volume) == ["cells", "membranes"]
    assert fingerprint(volume, "labels/zarr.json", "labels/.zattrs", "labels/membranes/") == before


def test_names_that_are_listed_at_once_are_all_listed(volume: Path) -> None:
    spec = run(volume)
    others = [replace(spec, path=str(Path(spec.path).with_name(f"n{i}"))) for i in range(8)]
    threads = [threading.Thread(target=list_label, args=(o, o.labels_name), kwargs={"listed": True}) for o in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(listed(volume)) == ["cells", *(f"n{i}" for i in range(8))]


def test_an_unfinished_one_is_not_listed_and_goes_on(volume: Path) -> None:
    info = open_volume(volume).info
    target = require_label_target(info, "cells")
    spec = spec_at(target)
    create_journal(target, {}).close()  # killed as early as can be
    assert is_stillborn(target)
    check_output_path(target, volume=volume, overwrite=False, is_label_group=True)
    create_output(spec, fingerprint={"a": 1}, provenance={"model": "m"}, overwrite=False).close()
    assert is_unborn(target)
    assert listed(volume) == []
    assert read_provenance(target) == {"model": "m", "status": "running"}
    assert zarr.open_group(target, mode="r").attrs.asdict().keys() == {PROVENANCE_KEY}
    with reopen_journal(target, {"a": 1}) as journal:
        journal.add(BlockRecord(index=0, status="done"))
        with pytest.raises(OutputBusyError, match=r"another run is writing to .*cells"):
            create_output(spec, fingerprint={}, provenance={}, overwrite=True)
    begun = find_begun(target, retry_failed=False)
    assert begun is not None
    assert begun.n_blocks == 1
    (target / "0").mkdir(exist_ok=True)
    (target / "0" / f"chunk.{'0' * 32}.partial").write_text("half")
    remove_partial_files(target)
    write_everything(spec, make_labels())
    finish_output(spec, provenance={"status": "complete"}, source=None)
    assert listed(volume) == ["cells"]
    assert not [*target.rglob("*.partial")]


def test_ours_is_replaced_only_when_it_may_be(volume: Path) -> None:
    spec = run(volume)
    target = Path(spec.path)
    with pytest.raises(OutputExistsError, match=r"^the output .*cells exists\n  nothing was written\n") as caught:
        check_output_path(target, volume=volume, overwrite=False, is_label_group=True)
    assert caught.value.fix == "choose another name, or replace it with --overwrite"
    run(volume, "others")
    (target / "stray").write_text("")
    check_output_path(target, volume=volume, overwrite=True, is_label_group=True)
    create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
    assert listed(volume) == ["others"]  # a viewer that follows the list finds no half of an image
    assert not (target / "stray").exists()
    finish_output(spec, provenance={"status": "complete"}, source=None)
    assert listed(volume) == ["others", "cells"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_is_never_replaced(volume: Path, overwrite: bool) -> None:
    is_v2 = (volume / ".zgroup").exists()
    theirs = volume / "labels" / "cells"
    write_group(volume / "labels", {}, zarr_format=2 if is_v2 else 3)
    write_group(theirs, {"multiscales": []}, zarr_format=2 if is_v2 else 3)
    before = fingerprint(volume)
    target = require_label_target(open_volume(volume).info, "cells")
    with pytest.raises(
        OutputPathError,
        match=r"^the label image .*cells was not written by unet-deploy, so it is never replaced\n"
        r"  a Zarr group with the attribute 'unet_deploy' was expected\n",
    ) as caught:
        check_output_path(target, volume=volume, overwrite=overwrite, is_label_group=True)
    assert caught.value.fix == "choose another name: --into-labels NAME"
    assert fingerprint(volume) == before


def test_a_link_is_no_place(volume: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (volume / "labels").mkdir()
    try:
        (volume / "labels" / "cells").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(OutputPathError, match=r"^the output .*cells is a link\n") as caught:
        check_output_path(volume / "labels" / "cells", volume=volume, overwrite=True, is_label_group=True)
    assert caught.value.fix == "choose another name: --into-labels NAME"
    (volume / "labels" / "cells").unlink()
    (volume / "labels").rmdir()
    (volume / "labels").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(OutputPathError, match=r"labels cannot go into the volume .*\n  .*labels is a link, and what"):
        require_label_target(open_volume(volume).info, "cells")


@pytest.mark.parametrize("n_levels", [1, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_they_have_as_many_levels_as_the_volume(tmp_path: Path, version: OmeVersion, n_levels: int) -> None:
    # "MUST have the same number of entries (scale levels) as the original unlabeled image"
    volume = write_image(tmp_path / "brain.zarr", version, n_levels=n_levels)
    spec = run(volume)
    for level in range(1 + spec.n_block_levels, n_levels):
        if level in spec.passes:
            for index in list_regions(spec, level):
                downsample_region(spec, level, index)
    models: Any = ome_zarr_models.v04 if version == "0.4" else ome_zarr_models.v05
    models.Image.from_zarr(zarr.open_group(volume, mode="r"))
    expected = make_labels()
    for level in range(n_levels):
        came = np.asarray(zarr.open_array(spec.path, path=str(level), mode="r")[...])
        np.testing.assert_array_equal(came, expected)
        expected = reduce_mode(expected)
    assert not (Path(spec.path) / str(n_levels)).exists()


# Where they may go.


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "../x", "-x", ".x", "_x", "x.", "a b", "x" * 65, "CON", "lpt1.a", "zarr.json", "ö"],
)
def test_names_that_are_no_plain_file_names_are_refused(volume: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^labels cannot be called .*\n  1 to 64 letters, digits") as caught:
        require_label_target(open_volume(volume).info, name)
    assert caught.value.fix == "--into-labels segmentation, or another plain name"


@pytest.mark.parametrize("name", ["a", "0", "Nuclei_v1.2-b", "x" * 64])
def test_plain_names_are_taken(volume: Path, name: str) -> None:
    assert require_label_target(open_volume(volume).info, name) == volume / "labels" / name
    assert not (volume / "labels").exists()


def test_the_objects_name_is_not_for_labels(volume: Path) -> None:
    with pytest.raises(ConfigurationError, match="names that end in _instances are for the objects of other labels"):
        require_label_target(open_volume(volume).info, "cells_instances")


def test_only_labels_can_go_there(volume: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"^results to write: labels, probabilities came, only labels go into the volume's own\n"
        r"  a label image has no place for probabilities\n  fix: --into-labels cells --write labels",
    ):
        require_label_target(open_volume(volume).info, "cells", kinds=("labels", "probabilities"))


@pytest.mark.parametrize(
    ("changes", "came"),
    [
        ({"path": "s3://bucket/brain.zarr"}, "s3://bucket/brain.zarr is an address, which is only read"),
        ({"container": "tiff"}, "is a TIFF file, which has no place for labels"),
        ({"ome_version": None}, "is a bare array, which has no place for labels"),
        ({"ome_version": "0.2", "zarr_format": 2}, "is OME-Zarr 0.2 on Zarr v2"),
        ({"ome_version": "0.4", "zarr_format": 3}, "is OME-Zarr 0.4 on Zarr v3"),
    ],
)
def test_only_a_local_ome_zarr_image_has_a_place(volume: Path, changes: dict[str, Any], came: str) -> None:
    info = replace(open_volume(volume).info, **changes)
    with pytest.raises(OutputPathError, match=f"^labels cannot go into the volume: .*{came}\n") as caught:
        require_label_target(info, "cells")
    assert caught.value.details == ("a local OME-Zarr image was expected, 0.4 on Zarr v2 or 0.5 on Zarr v3",)
    assert caught.value.fix == "leave --into-labels out: the result then goes to a store of its own"


def test_a_file_in_the_place_of_the_group_is_said(volume: Path) -> None:
    (volume / "labels").write_text("")
    with pytest.raises(OutputPathError, match=r"^labels cannot go into the volume .*\n  .*labels is a file, a "):
        require_label_target(open_volume(volume).info, "cells")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_volume_that_may_not_be_written_is_said(volume: Path) -> None:
    volume.chmod(0o500)
    try:
        with pytest.raises(OutputPathError, match="you may not write there"):
            require_label_target(open_volume(volume).info, "cells")
    finally:
        volume.chmod(0o700)


@pytest.mark.parametrize("what", ["array", "version", "listing"])
def test_odd_labels_are_refused(volume: Path, what: str) -> None:
    is_v2 = (volume / ".zgroup").exists()
    labels = volume / "labels"
    if what == "array":
        zarr.create_array(labels, shape=(2,), dtype="uint8", zarr_format=2 if is_v2 else 3)
    elif what == "version":
        write_group(labels, {}, zarr_format=3 if is_v2 else 2)
    else:
        listing = {"labels": ["a", 1]}
        write_group(labels, listing if is_v2 else {"ome": listing}, zarr_format=2 if is_v2 else 3)
    said = "its list of labels is no list of names" if what == "listing" else "a group of Zarr v[23] was expected"
    with pytest.raises(
        UnsupportedMetadataError, match=rf"^the volume's labels are not what OME-Zarr says\n  in .*labels\n  {said}\n"
    ) as caught:
        require_label_target(open_volume(volume).info, "cells")
    assert caught.value.fix.startswith("leave --into-labels out")


def consolidate(group: Path) -> Path:
    """Write the list of all nodes of a group; return the document that it stands in."""
    with warnings.catch_warnings(action="ignore"):  # that it is no part of the specification of version 3
        zarr.consolidate_metadata(group)
    return group / (".zmetadata" if (group / ".zgroup").exists() else "zarr.json")


def entries(document: Path) -> dict[str, Any]:
    found = json.loads(document.read_text())
    metadata: dict[str, Any] = found.get("consolidated_metadata", found)["metadata"]
    return metadata


def test_consolidated_metadata_lists_them_too(volume: Path) -> None:
    document = consolidate(volume)
    before, files = entries(document), fingerprint(volume, document.name)
    spec = run(volume)
    assert fingerprint(volume, "labels/", document.name) == files
    after = entries(document)
    assert {key: after[key] for key in before} == before
    assert {key.split("/")[0] for key in after.keys() - before.keys()} == {"labels"}
    root = zarr.open_group(volume, mode="r")  # zarr believes the list
    assert root.metadata.consolidated_metadata is not None
    label: Any = root["labels/cells"]
    assert label.attrs["unet_deploy"] == {"status": "complete"}
    assert dict(label.attrs) == dict(zarr.open_group(spec.path, mode="r").attrs)
    np.testing.assert_array_equal(np.asarray(label["0"][...]), make_labels())
    models: Any = ome_zarr_models.v04 if spec.zarr_format == 2 else ome_zarr_models.v05
    assert models.Image.from_zarr(root).labels is not None

    consolidated = entries(document)
    assert consolidated.keys() == entries(consolidate(volume)).keys()  # what zarr itself would list
    with connect(None) as client:
        number_instances(spec, InstanceRule(classes=(1,)), client)
    finish_instances(spec, provenance={}, source=None)
    assert "cells_instances" in zarr.open_group(volume, mode="r")["labels"]  # type: ignore[operator]
    create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
    again = zarr.open_group(volume, mode="r")["labels"]
    assert not [name for name in ("cells", "cells_instances") if name in again]  # type: ignore[operator]
    finish_output(spec, provenance={"status": "complete"}, source=None)
    assert entries(document).keys() == consolidated.keys()


def test_a_begun_one_is_not_in_the_consolidated_metadata(volume: Path) -> None:
    document = consolidate(volume)
    before = document.read_bytes()
    target = require_label_target(open_volume(volume).info, "cells")
    create_output(spec_at(target), fingerprint={}, provenance={}, overwrite=False).close()
    assert document.read_bytes() == before


@pytest.mark.parametrize("version", VERSIONS)
def test_lists_of_the_groups_above_are_kept_too(tmp_path: Path, version: OmeVersion) -> None:
    zarr_format = 2 if version == "0.4" else 3
    plate = tmp_path / "plate.zarr"
    zarr.create_group(plate, zarr_format=zarr_format, path="A")  # type: ignore[arg-type]
    image = write_image(plate / "A" / "0", version)
    documents = [consolidate(image), consolidate(plate)]
    run(image)
    for group, inside in ((image, "labels/cells"), (plate, "A/0/labels/cells")):
        label: Any = zarr.open_group(group, mode="r")[inside]
        assert label.attrs["unet_deploy"] == {"status": "complete"}
        assert label["1"].shape == (2, 15, 300)
    assert not [key for document in documents for key in entries(document) if "//" in key or key.startswith("/")]


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": 1}'])
def test_consolidated_metadata_that_cannot_be_read_is_refused(volume: Path, text: str) -> None:
    if (volume / ".zgroup").exists():
        document = volume / ".zmetadata"
        document.write_text(text)
    else:
        document = volume / "zarr.json"
        found = json.loads(document.read_text())
        document.write_text(json.dumps({**found, "consolidated_metadata": {"metadata": text}}))
    before = fingerprint(volume)
    with pytest.raises(
        OutputPathError,
        match=r"^labels cannot go into the volume: its consolidated metadata cannot be read\n  in .*: programs that",
    ) as caught:
        require_label_target(open_volume(volume).info, "cells")
    assert caught.value.fix.startswith("remove it (all it says stands in the groups and arrays too)")
    assert fingerprint(volume) == before


@pytest.mark.parametrize("text", ["{", '{"zarr_format": 3, "node_type": "group"}'])
def test_what_lies_above_the_volume_is_no_concern(volume: Path, text: str) -> None:
    (volume.parent / "zarr.json").write_text(text)
    assert require_label_target(open_volume(volume).info, "cells") == volume / "labels" / "cells"


def test_the_disk_is_looked_at_though_there_is_no_folder_yet(volume: Path) -> None:
    spec = spec_at(require_label_target(open_volume(volume).info, "cells"))
    check_space(spec, wants_instances=True)
    assert spec.instance_bytes == 4 * spec.raw_bytes == 4 * (SHAPE[0] * 30 * 600 + SHAPE[0] * 15 * 300)


# Their objects.


def test_objects_go_beside_them(volume: Path) -> None:
    spec = run(volume)
    before = fingerprint(volume, "labels/cells_instances/", "labels/zarr.json", "labels/.zattrs")
    rule = InstanceRule(classes=(1,))
    with connect(None) as client:
        result = number_instances(spec, rule, client)
    assert listed(volume) == ["cells"]
    objects = Path(spec.instances_path)
    assert objects == volume / "labels" / "cells_instances"
    said: Any = read_provenance(objects)
    assert said == {"status": "running", "instances_of": "cells"}
    finish_instances(spec, provenance=result.to_object(rule), source=None)
    assert result.count == 3
    assert listed(volume) == ["cells", "cells_instances"]
    assert fingerprint(volume, "labels/cells_instances/", "labels/zarr.json", "labels/.zattrs") == before
    ids = np.asarray(zarr.open_array(objects, path="0", mode="r")[...])
    assert ids.dtype == np.uint32
    assert [np.unique(plane).tolist() for plane in ids] == [[0, 1], [0, 2, 3]]
    models: Any = ome_zarr_models.v04 if spec.zarr_format == 2 else ome_zarr_models.v05
    root = zarr.open_group(volume, mode="r")
    models.ImageLabel.from_zarr(root["labels/cells_instances"])
    attributes: Any = root["labels/cells_instances"].attrs.asdict()
    ome = attributes.get("ome", attributes)
    assert ome["image-label"]["source"] == {"image": "../../"}
    assert ome["multiscales"][0]["name"] == "cells_instances"

    # So do labels that are gone on with, and labels that are replaced: their objects would be those of others.
    mark_running(spec, {"model": "m"})
    said = read_provenance(Path(spec.path))
    assert said == {"model": "m", "status": "running"}
    assert listed(volume) == ["cells"]
    assert not objects.exists()
    assert not (Path(spec.path) / "unet_deploy_run" / "replaced").exists()
    with connect(None) as client:
        number_instances(spec, rule, client)
    finish_instances(spec, provenance={}, source=None)
    create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
    assert listed(volume) == []
    assert not objects.exists()


def test_the_table_of_objects_goes_beside_the_volume(volume: Path, tmp_path: Path) -> None:
    target = require_label_target(open_volume(volume).info, "cells")
    assert default_table(target) == tmp_path / "brain_cells_objects.csv"
    assert default_table(tmp_path / "out.ome.zarr") == tmp_path / "out_objects.csv"
    zarr.create_group(tmp_path / "plate.ome.zarr")
    inside = tmp_path / "plate.ome.zarr" / "A" / "0" / "labels" / "cells"
    assert default_table(inside) == tmp_path / "plate_A_0_cells_objects.csv"


def test_somebody_elses_objects_are_never_replaced(volume: Path) -> None:
    spec = run(volume)
    theirs = zarr.create_group(spec.instances_path, attributes={"a": 1}, zarr_format=spec.zarr_format)
    info = open_volume(volume).info
    assert require_label_target(info, "cells") == Path(spec.path)
    words = r"^the objects of cells would go to .*cells_instances, where something else is\n  it was not made by unet-"
    with pytest.raises(OutputPathError, match=words) as caught:
        require_label_target(info, "cells", wants_instances=True)
    assert caught.value.fix == "choose another name: --into-labels NAME"
    before = fingerprint(volume)
    with connect(None) as client, pytest.raises(OutputPathError, match=words) as late:
        number_instances(spec, InstanceRule(classes=(1,)), client)
    assert late.value.fix == "move it away, then give the same command again"
    assert fingerprint(volume) == before
    create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
    assert theirs.attrs["a"] == 1


def test_somebody_elses_objects_do_not_hold_a_run(volume: Path) -> None:
    spec = run(volume)
    begun = Begun(provenance={"status": "region"}, n_blocks=1)
    place = Place(target=Path(spec.path), begun=begun, may_replace=False, again=False)
    zarr.create_group(spec.instances_path, attributes={"a": 1}, zarr_format=spec.zarr_format)
    require_objects_fit(place, spec, wants_instances=False)
    shutil.rmtree(spec.instances_path)
    create_instances(spec)
    with pytest.raises(ConfigurationError, match=r"^the objects of .* would no longer fit its labels"):
        require_objects_fit(place, spec, wants_instances=False)


def create_undisturbed(spec: OutputSpec) -> None:
    """Create them once zarr's other threads have written what they were at: a kill would have ended those too."""
    for _ in range(100):
        try:
            return create_instances(spec)
        except OSError:
            time.sleep(0.02)
    return create_instances(spec)


def test_objects_of_a_run_that_was_killed_at_any_file_are_ours(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in their place is nothing, or says whose it is: else the next run would have to leave it there."""
    spec = run(volume)
    replace, left = os.replace, 0

    def die(*places: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("killed")
        replace(*places)

    monkeypatch.setattr(os, "replace", die)
    for n_files in range(100):
        left = n_files
        try:
            create_instances(spec)
        except OSError:
            left = 10**6
            objects = Path(spec.instances_path)
            assert not objects.exists() or is_made_for(objects, spec.labels_name), n_files
            create_undisturbed(spec)
        else:
            break
    assert 3 < n_files < 100


def test_half_a_group_is_one_that_was_killed(volume: Path) -> None:
    target = volume / "labels" / "cells"
    create_journal(target, {}).close()
    name = "zarr.json" if (volume / "zarr.json").exists() else ".zattrs"
    (target / f"{name}.{'0' * 32}.partial").write_text("{")
    assert is_stillborn(target)
    assert run(volume).path == str(target)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such modes")
def test_documents_that_are_replaced_can_be_written_by_whom_they_could(volume: Path) -> None:
    zarr.create_group(volume / "labels", zarr_format=3 if (volume / "zarr.json").exists() else 2)
    consolidate(volume)
    documents = [file for file in volume.rglob("*") if file.name in ("zarr.json", ".zattrs", ".zmetadata")]
    for file in documents:
        file.chmod(0o664)
    run(volume)
    assert {stat.S_IMODE(file.stat().st_mode) for file in documents} == {0o664}


# What is asked for.


def test_kinds_are_split_from_objects() -> None:
    assert split_kinds(["probabilities", "labels"]) == (("labels", "probabilities"), False)
    assert split_kinds(["instances", "labels"]) == (("labels",), True)


def test_objects_need_labels() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"^results to write: instances came without labels\n"
        r"  objects are what touches in the finished labels, so these are written too\n",
    ) as caught:
        split_kinds(["instances", "probabilities"])
    assert caught.value.fix == "--write labels --write probabilities --write instances"


@pytest.mark.parametrize(("write", "came"), [([], "none"), (["labels", "mask"], "mask")])
def test_unknown_kinds_are_refused(write: list[str], came: str) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"^results to write: {came} came, labels, probabilities or instances was expected\n"
        r"  labels are the class of each pixel, probabilities its soft-max in 8 bit, instances the objects' numbers\n",
    ) as caught:
        split_kinds(write)
    assert caught.value.fix == "--write labels --write probabilities"


def test_a_document_that_cannot_be_replaced_stays(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = run(volume)
    before = fingerprint(volume)

    def refuse(*_: object) -> None:
        raise PermissionError("held by another program")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError, match="held by"):
        list_label(spec, "more", listed=True)
    assert fingerprint(volume) == before
