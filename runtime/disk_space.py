"""Room on the disk: asked for before a run, and named where it runs out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unet_deploy.errors import NoSpaceError
from unet_deploy.runtime.layout import OutputSpec


def check_space(spec: OutputSpec, *, wants_instances: bool = False, share: float = 1.0) -> None:
    """Refuse a run whose result may not fit on the disk.

    Parameters
    ----------
    spec, wants_instances
        What will be written.
    share
        How much of the volume this run is to make.

    Raises
    ------
    NoSpaceError
        If less is free than the result takes uncompressed.
    """
    needed = share * (spec.raw_bytes + (spec.instance_bytes if wants_instances else 0))
    free = shutil.disk_usage(_existing(Path(spec.path).resolve().parent)).free
    if free < needed:
        kinds = [*spec.kinds, *(["instances"] if wants_instances else [])]
        raise NoSpaceError(
            f"the result may take {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free",
            f"at {spec.path}; uncompressed size of {' and '.join(kinds)} with pyramid",
            fix="free space, choose --output on another disk, or write less (--write labels); "
            "--no-space-check if you know that it compresses",
        )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there: a volume without labels has no folder for them yet."""
    return next((place for place in (folder, *folder.parents) if place.is_dir()), folder)


@contextmanager
def full_disk_named(where: str) -> Iterator[None]:
    """Let a full disk or an exhausted quota be a `NoSpaceError`, which ends a run; other errors pass.

    Raises
    ------
    NoSpaceError
        If the system says so while the block runs.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NoSpaceError(
            f"the disk is full: {error.strerror}", where, fix="free space, then give the same command again"
        ) from error
