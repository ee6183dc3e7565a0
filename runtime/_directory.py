"""From what the user gave as a path to a directory that is there."""

from __future__ import annotations

import difflib
from pathlib import Path

from unet_deploy.errors import NotAVolumeError, VolumeNotFoundError
from unet_deploy.runtime._remote import Location, RemoteDirectory, as_location


def find_directory(path: str | Path) -> Location:
    """Return the directory at a path, or behind an address, where nobody can tell before its documents are read.

    Raises
    ------
    VolumeNotFoundError
        If there is nothing at the path, or the address is of a kind that is not read.
    NotAVolumeError
        If it is a file.
    UsageError
        If an address holds more than it should.
    """
    root = as_location(path)
    if isinstance(root, RemoteDirectory):
        return root
    text = str(path)
    if not root.exists():
        near = sorted(child.name for child in root.parent.iterdir()) if root.parent.is_dir() else []
        close = difflib.get_close_matches(root.name, near, n=1)
        raise VolumeNotFoundError(
            f"there is nothing at {text}",
            f"looked in {root.parent}" if near else f"{root.parent} is no directory, or empty",
            fix=f"did you mean {root.parent / close[0]}?" if close else "check the path",
        )
    if not root.is_dir():
        raise NotAVolumeError(
            f"{text} is a file, the directory of a Zarr array or OME-Zarr image was expected",
            "TIFF files are read too; Zarr in a ZIP file is not read by this release",
            fix="unpack the ZIP file, or convert the image to OME-Zarr (bioformats2raw IN OUT.zarr)",
        )
    return root
