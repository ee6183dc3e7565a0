"""A file that a user named beside a run's output, a table or a profile: whether it can be written, and how.

It is looked at before any work, since it is written at the end of it; then it is whole or not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unet_deploy.errors import NoSpaceError, OutputExistsError, OutputPathError, UsageError
from unet_deploy.runtime._atomic_file import AtomicFile
from unet_deploy.runtime.disk_space import full_disk_named
from unet_deploy.runtime.output_paths import find_store


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """What such a file is: `word` in a message, `full_name` where it is told from others, of which `is_ours` knows it.

    `suffix_says` is what the suffix decides, `untouched` what is said where the file cannot be written in the end.
    """

    word: str
    full_name: str
    suffixes: tuple[str, ...]
    suffix_says: str
    is_ours: Callable[[Path], bool]
    untouched: tuple[str, ...] = ()

    def check(self, path: Path, *, overwrite: bool, goes_on: bool) -> None:
        """Refuse, before any work, a place where it cannot be written or would harm something.

        Parameters
        ----------
        path
            The file.
        overwrite
            Whether a file that is there may be replaced.
        goes_on
            Whether an earlier run is gone on with: then one of ours is, which that run may have written.

        Raises
        ------
        UsageError
            If the suffix is another.
        OutputPathError
            If the folder is missing, or belongs to a Zarr store; or something that is no file is there.
        OutputExistsError
            If a file is there that may not be replaced.
        """
        if path.suffix.lower() not in self.suffixes:
            expected = " or ".join(self.suffixes)
            raise UsageError(
                f"the {self.word} {path} ends in {path.suffix or 'nothing'!r}, {expected} was expected",
                f"the suffix says {self.suffix_says}",
                fix=f"name it {path.stem or self.word}{self.suffixes[0]}",
            )
        if not path.parent.is_dir():
            raise OutputPathError(
                f"the folder of the {self.word} {path} does not exist",
                f"{path.parent} was expected to be a folder",
                fix="create it, or choose another place",
            )
        store = find_store(path)
        if store is not None:
            raise OutputPathError(
                f"the {self.word} {path} lies inside the Zarr store {store}",
                "a store holds what Zarr put there",
                fix=f"write it to {store.parent / path.name}",
            )
        if path.exists() and not path.is_file():
            raise OutputPathError(
                f"the {self.word} {path} is no file", "it would be replaced", fix="choose another name"
            )
        if path.exists() and not overwrite and not (goes_on and self.is_ours(path)):
            raise OutputExistsError(
                f"the {self.word} {path} exists",
                "nothing was written",
                fix=f"choose another name, or remove it yourself: it is no {self.full_name}"
                if goes_on
                else "choose another name, or replace it with --overwrite",
            )

    @contextmanager
    def open(self, path: Path) -> Iterator[IO[bytes]]:
        """Give the file to write to; it is at its place when the context ends, unless that raises.

        Raises
        ------
        NoSpaceError
            If the disk is full.
        OutputPathError
            If it cannot be written for another reason.
        """
        try:
            with full_disk_named(f"while writing the {self.word} {path}"), AtomicFile(path) as file:
                yield file
        except NoSpaceError:
            raise
        except OSError as error:
            raise OutputPathError(
                f"the {self.word} {path} cannot be written: {error.strerror or error}",
                f"{type(error).__name__} at {error.filename or path}",
                *self.untouched,
                fix="choose a place where you may write",
            ) from error
