"""Where an output may go, and what already lies there; nothing is written here but away with leftovers.

1. A store of its own lies beside the volume, outside every other Zarr store.
2. A label group lies in the volume's own ``labels`` (`label_group` says where); the rest of the volume is not ours.
3. What exists is kept, unless it is ours and it may be overwritten. What is ours says so in its attributes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from unet_deploy.errors import InputDataError, OutputExistsError, OutputPathError
from unet_deploy.runtime._zarr_metadata import read_node
from unet_deploy.runtime.journal import FOLDER
from unet_deploy.runtime.layout import PROVENANCE_KEY

_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
_NODE_FILES = ("zarr.json", ".zgroup", ".zarray")
GROUP_FILES = ("zarr.json", ".zgroup", ".zattrs")
"""What makes a folder a group, and says whose it is."""


def check_output_path(output: Path, *, volume: Path, overwrite: bool, is_label_group: bool = False) -> None:
    """Refuse a place where writing would fail or harm something.

    `is_label_group` says that `output` is what `require_label_target` gave.

    Raises
    ------
    OutputPathError
        If a store of its own and the volume lie inside each other, the folder is missing, or `overwrite` would delete
        something that is not a segmentation of ours.
    OutputExistsError
        If something is there and `overwrite` was not given.
    """
    if not is_label_group:
        _require_place_of_its_own(output, volume)
    if output.is_symlink():
        other = f"--output {output.resolve()}, or another place"
        raise OutputPathError(
            f"the output {output} is a link",
            "what it leads to would be written to, or deleted",
            fix="choose another name: --into-labels NAME" if is_label_group else other,
        )
    if not output.exists() or is_stillborn(output):
        return
    is_ours = read_provenance(output) is not None
    if is_label_group and not is_ours:
        raise OutputPathError(
            f"the label image {output} was not written by unet-deploy, so it is never replaced",
            f"a Zarr group with the attribute {PROVENANCE_KEY!r} was expected",
            fix="choose another name: --into-labels NAME",
        )
    if not overwrite:
        require_free(output, is_label_group=is_label_group)
    if not is_ours:
        raise OutputPathError(
            f"{output} is no segmentation written by unet-deploy, so --overwrite does not delete it",
            f"a Zarr group with the attribute {PROVENANCE_KEY!r} was expected",
            fix="choose another --output, or remove it yourself",
        )


def _require_place_of_its_own(output: Path, volume: Path) -> None:
    here, there = output.resolve(), volume.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise OutputPathError(
            f"the output {output} and the volume {volume} lie inside each other",
            "writing there would change or delete the input",
            fix=f"--output {there.parent / (there.name.split('.')[0] + '_segmentation.ome.zarr')}",
        )
    store = find_store(output)
    if store is not None:
        raise OutputPathError(
            f"the output {output} lies inside the Zarr store {store}",
            "a store is changed only by who made it",
            fix=f"--output {store.parent / (output.stem.split('.')[0] + '_segmentation.ome.zarr')}",
        )
    if not output.parent.is_dir():
        raise OutputPathError(
            f"the folder of the output {output} does not exist",
            f"{output.parent} was expected to be a folder",
            fix="create it, or choose another --output",
        )


def require_free(output: Path, *, is_label_group: bool = False) -> None:
    """Refuse a place where something is.

    Raises
    ------
    OutputExistsError
        If it is anything but the journal of a run that was killed before it made the store.
    """
    if output.exists() and not is_stillborn(output):
        raise OutputExistsError(
            f"the output {output} exists",
            "nothing was written",
            fix=f"choose another {'name' if is_label_group else '--output'}, or replace it with --overwrite",
        )


def is_stillborn(output: Path) -> bool:
    """Tell whether a folder holds nothing but the journal of a run that was killed before it made the store."""
    if not output.is_dir():
        return False
    names = {entry.name for entry in output.iterdir() if not _PARTIAL.fullmatch(entry.name)}
    return FOLDER in names and names <= {FOLDER, *GROUP_FILES[1:]}  # half a group of Zarr v2 is none


def find_store(path: Path) -> Path | None:
    """Return the outermost Zarr node that `path` lies inside, None if there is none."""
    nodes = [parent for parent in path.resolve().parents if any((parent / name).is_file() for name in _NODE_FILES)]
    return nodes[-1] if nodes else None


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what a segmentation of ours says of itself; None for anything else."""
    try:
        node = read_node(path)
    except InputDataError:
        return None
    if node is None or node.kind != "group" or not node.document:  # attributes alone make no group
        return None
    found = node.attributes.get(PROVENANCE_KEY)
    return found if isinstance(found, dict) else None


def remove_partial_files(output: Path) -> None:
    """Delete what a kill left of files that were being written: each is, as by Zarr, under another name first."""
    for folder, _, names in os.walk(output):
        for name in names:
            if _PARTIAL.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)
