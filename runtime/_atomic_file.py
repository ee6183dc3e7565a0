"""A file that is either whole or not there."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any


class AtomicFile:
    """A file to write that appears under its name only when all of it is written; used as a context."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # A task that Dask runs twice at once must not write to one file. In a store, what a kill leaves has the name
        # that zarr would give it (`output_paths.remove_partial_files`).
        self._draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        self._file: Any = None

    def __enter__(self) -> Any:
        self._file = self._draft.open("wb")
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._file.close()  # which writes what is left, so the disk may be full here too
            if kind is None:
                self._draft.replace(self._path)
        finally:
            self._draft.unlink(missing_ok=True)
