"""Labels in the volume's own ``labels`` group: whether they may go there, and the listing that tells of them.

1. `require_label_target` says where: ``labels/NAME`` of a local OME-Zarr image of the versions that we write.
2. The group ``labels`` is made if there is none. It lists its images in one document, which is replaced as a whole
   and keeps everything else in it: other names, other attributes.
3. A name is listed when its image is finished, and taken out before it is replaced. Where the store lists all its nodes
   in one document too, so is the image (`_consolidated`). Nothing else there is touched.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet_deploy.errors import ConfigurationError, OutputPathError, UnsupportedMetadataError
from unet_deploy.runtime._consolidated import alone_in, find_lists, replace_document, update_lists
from unet_deploy.runtime._remote import RemoteDirectory, as_location
from unet_deploy.runtime._zarr_metadata import Node, read_node
from unet_deploy.runtime.journal import FOLDER
from unet_deploy.runtime.layout import INSTANCES_NAME, OutputSpec
from unet_deploy.runtime.output_paths import read_provenance
from unet_deploy.runtime.volume_info import VolumeInfo

WRITTEN = {(2, "0.4"), (3, "0.5")}
"""The pairs of Zarr format and OME-Zarr version that we write."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")
_NO_FILE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|zarr\.json", re.IGNORECASE)
"""Names that Windows, or Zarr, keeps for itself."""
_OF_THEIR_OWN = "leave --into-labels out: the result then goes to a store of its own"


def require_label_target(
    info: VolumeInfo, name: str, *, kinds: Sequence[str] = ("labels",), wants_instances: bool = False
) -> Path:
    """Return where labels of a name go in a volume; whether something is there, `check_output_path` tells.

    Parameters
    ----------
    info
        The volume.
    name
        1 to 64 letters, digits, ``_``, ``-`` and ``.``.
    kinds
        What is to be written: labels are all that can be.
    wants_instances
        Whether objects are numbered too, in a group ``NAME_instances`` beside the labels.

    Raises
    ------
    ConfigurationError
        If the name cannot be used, or something other than labels is to be written.
    OutputPathError
        If the volume is no local OME-Zarr image of version 0.4 or 0.5, cannot be written to, or has consolidated
        metadata that cannot be read; or the place of the objects is taken by somebody else's.
    UnsupportedMetadataError
        If its ``labels`` is not what it should be.
    """
    _require_name(name)
    if tuple(kinds) != ("labels",):
        raise ConfigurationError(
            f"results to write: {', '.join(kinds)} came, only labels go into the volume's own",
            "a label image has no place for probabilities",
            fix=f"--into-labels {name} --write labels",
        )
    _require_image(info)
    image = Path(info.path)
    labels = image / "labels"
    _require_writable(image, labels)
    _read_listing(labels, zarr_format=info.zarr_format)
    find_lists(labels, zarr_format=info.zarr_format)
    objects = labels / f"{name}_{INSTANCES_NAME}"
    if wants_instances and objects.exists() and not is_made_for(objects, name):
        raise OutputPathError(
            f"the objects of {name} would go to {objects}, where something else is",
            "it was not made by unet-deploy for these labels, so it is never replaced",
            fix="choose another name: --into-labels NAME",
        )
    return labels / name


def _require_name(name: str) -> None:
    problem = None
    if not _NAME.fullmatch(name) or _NO_FILE.fullmatch(name):
        problem = (
            "1 to 64 letters, digits, '_', '-' and '.' were expected, the first a letter or digit, the last no '.'"
        )
    elif name.endswith(f"_{INSTANCES_NAME}"):
        problem = f"names that end in _{INSTANCES_NAME} are for the objects of other labels"
    if problem is not None:
        raise ConfigurationError(
            f"labels cannot be called {name!r}", problem, fix="--into-labels segmentation, or another plain name"
        )


def _require_image(info: VolumeInfo) -> None:
    """Refuse what has no ``labels`` that we could write."""
    came = None
    if isinstance(as_location(info.path), RemoteDirectory):
        came = "is an address, which is only read"
    elif info.container != "zarr":
        came = "is a TIFF file, which has no place for labels"
    elif info.ome_version is None:
        came = "is a bare array, which has no place for labels"
    elif (info.zarr_format, info.ome_version) not in WRITTEN:
        came = f"is OME-Zarr {info.ome_version} on Zarr v{info.zarr_format}"
    if came is not None:
        raise OutputPathError(
            f"labels cannot go into the volume: {info.path} {came}",
            "a local OME-Zarr image was expected, 0.4 on Zarr v2 or 0.5 on Zarr v3",
            fix=_OF_THEIR_OWN,
        )


def _require_writable(image: Path, labels: Path) -> None:
    why = None
    if labels.is_symlink():
        why = f"{labels} is a link, and what it leads to may be another volume's"
    elif labels.exists() and not labels.is_dir():
        why = f"{labels} is a file, a group was expected"
    elif not os.access(labels if labels.is_dir() else image, os.W_OK):
        why = "you may not write there"
    if why is not None:
        raise OutputPathError(f"labels cannot go into the volume {image}", why, fix=_OF_THEIR_OWN)


def is_made_for(objects: Path, name: str) -> bool:
    """Tell whether a group holds the object ids that we made of the labels called `name`."""
    provenance = None if objects.is_symlink() else read_provenance(objects)
    return provenance is not None and provenance.get("instances_of") == name


def begin_label_group(spec: OutputSpec) -> None:
    """Make the group of labels if there is none, and take what is to be replaced out of it; its journal is locked."""
    labels = Path(spec.labels_folder)
    node = _read_listing(labels, zarr_format=spec.zarr_format)
    if node is None:
        listing: dict[str, Any] = {"labels": []}
        if spec.zarr_format == 3:
            attributes = {"ome": {"version": spec.ome_version, **listing}}
            replace_document(labels / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
        else:
            replace_document(labels / ".zattrs", listing)
            replace_document(labels / ".zgroup", {"zarr_format": 2})
    list_label(spec, spec.labels_name, listed=False)
    drop_objects(spec)


def drop_objects(spec: OutputSpec) -> None:
    """Delete the object ids of labels that are about to change; beside a label group only those that are ours."""
    folder = Path(spec.instances_path)
    if not folder.exists() or (spec.is_label_group and not is_made_for(folder, spec.labels_name)):
        return
    list_label(spec, folder.name, listed=False)
    # Moved first: what a kill left of it in its place would not be known as ours any more.
    trash = Path(spec.path) / FOLDER / "replaced"
    if trash.exists():
        shutil.rmtree(trash)
    folder.replace(trash)
    shutil.rmtree(trash)


def list_label(spec: OutputSpec, name: str, *, listed: bool, attributes: Mapping[str, Any] | None = None) -> None:
    """Put a name among the labels, before that of its objects, or take it out; all else in the document stays.

    `attributes` of the label image are yet to be written: lists of the whole store say them already.
    """
    folder = Path(spec.labels_folder)
    with alone_in(folder):
        node = _read_listing(folder, zarr_format=spec.zarr_format)
        assert node is not None, folder
        before = _listed(node)
        if (name in before) != listed:
            names = [other for other in before if other != name]
            if listed:
                objects = Path(spec.instances_path).name
                names.insert(before.index(objects) if objects in before else len(before), name)
            _write_listing(folder, node, names, version=spec.ome_version)
    if spec.is_label_group:
        update_lists(folder, name, zarr_format=spec.zarr_format, is_there=listed, attributes=attributes)


def _write_listing(labels: Path, node: Node, names: list[str], *, version: str) -> None:
    if node.zarr_format == 3:
        ome = {"version": version, **_ome_of(node), "labels": names}
        document = {**node.document, "attributes": {**node.attributes, "ome": ome}}
        replace_document(labels / "zarr.json", document)
    else:
        replace_document(labels / ".zattrs", {**node.attributes, "labels": names})


def _read_listing(labels: Path, *, zarr_format: int) -> Node | None:
    """Return the group of labels, None if there is none yet.

    Raises
    ------
    UnsupportedMetadataError
        If something else is there.
    """
    node = read_node(labels)
    if node is None:
        return None
    names = _listed(node)
    what = None
    if node.kind != "group" or node.zarr_format != zarr_format or not node.document:
        what = f"a group of Zarr v{zarr_format} was expected"
    elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        what = "its list of labels is no list of names"
    if what is not None:
        raise UnsupportedMetadataError(
            "the volume's labels are not what OME-Zarr says", f"in {labels}", what, fix=_OF_THEIR_OWN
        )
    return node


def _listed(node: Node) -> Any:
    return (_ome_of(node) if node.zarr_format == 3 else node.attributes).get("labels", [])


def _ome_of(node: Node) -> dict[str, Any]:
    ome = node.attributes.get("ome")
    return ome if isinstance(ome, dict) else {}
