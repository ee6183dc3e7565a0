"""What a store lists of all its nodes in one document (consolidated metadata), kept true for a label group of ours.

1. Such a list may stand in the group of labels, in the image, and in every group above it: ``.zmetadata`` of Zarr v2,
   the key ``consolidated_metadata`` of a ``zarr.json``. Programs that read it look at no other document, so a group
   that is not in it is not there for them.
2. The entries of the label group, and of ``labels`` itself, are replaced; all others stay. Nothing is added before the
   group is finished.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unet_deploy.errors import OutputPathError

_V2_FILES = (".zgroup", ".zarray", ".zattrs")
_KEY = "consolidated_metadata"


def find_lists(labels: Path, *, zarr_format: int) -> list[Path]:
    """Return the documents that list the nodes of the store which the group of labels is in.

    Raises
    ------
    OutputPathError
        If one cannot be read.
    """
    groups = (labels, *labels.parents)
    if zarr_format == 3:
        return [group / "zarr.json" for group in groups if _inline(group / "zarr.json") is not None]
    files = [group / ".zmetadata" for group in groups if (group / ".zmetadata").is_file()]
    for file in files:
        _read_v2(file)
    return files


def update_lists(
    labels: Path, name: str, *, zarr_format: int, is_there: bool, attributes: Mapping[str, Any] | None = None
) -> None:
    """Let every list say what the label group `name` is, or that it is not there.

    Parameters
    ----------
    labels
        The group that it is in.
    name
        The label group, which may be there and yet unfinished.
    zarr_format
        Of the store.
    is_there
        Whether it is to be listed.
    attributes
        What is to be said of the group in place of these attributes on the disk, which are yet to be written.
    """
    for file in find_lists(labels, zarr_format=zarr_format):
        prefix = labels.relative_to(file.parent).as_posix().removeprefix(".")
        own = f"{prefix}/{name}".lstrip("/")
        with alone_in(file.parent):
            document = json.loads(file.read_bytes())
            holder = document[_KEY] if zarr_format == 3 else document
            before = holder["metadata"]
            after = {key: value for key, value in before.items() if key != own and not key.startswith(f"{own}/")}
            if prefix and (is_there or any(key in before for key in (prefix, f"{prefix}/.zgroup"))):
                after |= _documents(labels, prefix, zarr_format)
            if is_there:
                folder = labels / name
                for node in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
                    inside = node.relative_to(folder).as_posix().removeprefix(".")
                    after |= _documents(node, f"{own}/{inside}".rstrip("/"), zarr_format)
                _override(after, own, zarr_format, attributes or {})
            if after != before:
                holder["metadata"] = after
                replace_document(file, document)


def _documents(folder: Path, key: str, zarr_format: int) -> dict[str, Any]:
    """Return what the list says of a node: nothing where there is none."""
    if zarr_format == 2:
        files = {f"{key}/{name}": folder / name for name in _V2_FILES}
        return {entry: json.loads(file.read_bytes()) for entry, file in files.items() if file.is_file()}
    if not (folder / "zarr.json").is_file():
        return {}
    return {key: {k: v for k, v in json.loads((folder / "zarr.json").read_bytes()).items() if k != _KEY}}


def _override(metadata: dict[str, Any], key: str, zarr_format: int, attributes: Mapping[str, Any]) -> None:
    if zarr_format == 2:
        metadata[f"{key}/.zattrs"] = {**metadata.get(f"{key}/.zattrs", {}), **attributes}
    else:
        node = metadata[key]
        metadata[key] = {**node, "attributes": {**node.get("attributes", {}), **attributes}}


def _inline(file: Path) -> dict[str, Any] | None:
    """Return the list in a document of Zarr v3; None where there is none, or no such document."""
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    found = document.get(_KEY) if isinstance(document, dict) else None
    if found is None:
        return None
    return _require_list(found, file)


def _read_v2(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        document = None
    return _require_list(document, file)


def _require_list(found: Any, file: Path) -> dict[str, Any]:
    if not isinstance(found, dict) or not isinstance(found.get("metadata"), dict):
        raise OutputPathError(
            "labels cannot go into the volume: its consolidated metadata cannot be read",
            f"in {file}: programs that read that would not see the labels",
            fix="remove it (all it says stands in the groups and arrays too), or leave --into-labels out",
        )
    return found


def replace_document(file: Path, document: Mapping[str, Any]) -> None:
    """Write a document in place of the one there is, in one step: whoever reads sees the one or the other."""
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(document, indent=2))
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(OSError):  # there may be none yet; who may write to it is the user's to say
            shutil.copymode(file, draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs that write labels to the same volume from changing its lists meanwhile: one would be lost."""
    if sys.platform == "win32":  # has no lock of a folder; a lock file would be one more thing in the volume
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: as on Windows
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
