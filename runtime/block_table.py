"""The table of a run: a row for each block, as CSV or Parquet.

1. Rows come by block number, from the plan and the journal's last word on each block; those that nobody has done yet
   are *pending*.
2. They are written as they come, so a million cost no more memory than a few.
3. The file is whole or not there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import IO, Any

from unet_deploy.errors import MissingDependencyError
from unet_deploy.geometry import Interval
from unet_deploy.runtime._side_file import SideFile
from unet_deploy.runtime.journal import BlockRecord, Journal
from unet_deploy.runtime.plan import SegmentationPlan

SUFFIXES = (".csv", ".parquet")
GROUP_ROWS = 2**14
"""Of a Parquet file's row groups, one of which is held at a time."""
_PLACE = ("block", "t", "z_start", "z_stop", "y_start", "y_stop", "x_start", "x_stop")
_DIGITS = 6

Row = tuple[Any, ...]


def check_table_path(path: Path, *, overwrite: bool, goes_on: bool = False) -> None:
    """Refuse, before any work, a place where a table cannot be written or would harm something.

    Parameters
    ----------
    path
        The file, ``.csv`` or ``.parquet``.
    overwrite
        Whether a file that is there may be replaced.
    goes_on
        Whether an earlier run is gone on with: then a table of blocks is, which that run may have written.

    Raises
    ------
    UsageError
        If the suffix is another.
    OutputPathError
        If the folder is missing, or belongs to a Zarr store; or something that is no file is there.
    OutputExistsError
        If a file is there that may not be replaced.
    MissingDependencyError
        If a Parquet file is wanted and pyarrow is not installed.
    """
    _file().check(path, overwrite=overwrite, goes_on=goes_on)
    if path.suffix.lower() == ".parquet":
        _import_pyarrow()


def write_block_table(path: Path, journal: Journal, plan: SegmentationPlan, *, class_names: Sequence[str]) -> None:
    """Write a row for each block of a plan.

    The columns are ``block`` (its number), ``t`` and the half-open range of z, y and x in pixels; ``status`` (``done``,
    ``empty``: answered without the network, ``failed``, ``pending``); ``pixels``; ``foreground_fraction`` (share of the
    pixels that are not of the first class); the pixels of each class; ``mean_confidence`` (the winning class's
    probability); ``saturated_fraction`` (input pixels at an end of their dtype's range); ``reason`` (why it failed).
    What is not known is left empty.

    Parameters
    ----------
    path
        The file, which `check_table_path` let pass; one that is there is replaced.
    journal
        What became of the blocks; it may be open or closed.
    plan
        Where they lie.
    class_names
        Of the model's classes, in order; the columns are named after them.

    Raises
    ------
    NoSpaceError
        If the disk is full.
    OutputPathError
        If the file cannot be written for another reason.
    MissingDependencyError
        If a Parquet file is wanted and pyarrow is not installed.
    """
    columns = _columns(class_names)
    rows = _rows(journal, plan, len(class_names))
    with _file().open(path) as file:
        if path.suffix.lower() == ".parquet":
            _write_parquet(file, columns, rows)
        else:
            _write_csv(file, columns, rows)


def _file() -> SideFile:
    return SideFile(
        word="table",
        full_name="table of blocks",
        suffixes=SUFFIXES,
        suffix_says="how the table is written",
        is_ours=_is_block_table,
    )


def _is_block_table(path: Path) -> bool:
    """Tell whether a file has the first columns of a table of blocks."""
    if path.suffix.lower() == ".csv":
        head = ",".join(_PLACE).encode()
        with path.open("rb") as file:
            return file.read(len(head)) == head
    pyarrow, parquet = _import_pyarrow()
    try:
        return tuple(parquet.read_schema(path).names[: len(_PLACE)]) == _PLACE
    except pyarrow.ArrowException:  # no Parquet at all
        return False


def _columns(class_names: Sequence[str]) -> dict[str, type]:
    """Return the columns, and what is in them where anything is."""
    return {
        **dict.fromkeys(_PLACE, int),
        "status": str,
        "pixels": int,
        "foreground_fraction": float,
        **{f"{name}_pixels": int for name in class_names},
        "mean_confidence": float,
        "saturated_fraction": float,
        "reason": str,
    }


def _rows(journal: Journal, plan: SegmentationPlan, classes: int) -> Iterator[Row]:
    extents = plan.extents
    sides = zip((extents.z, extents.y, extents.x), plan.block_shape, strict=True)
    cuts_z, cuts_y, cuts_x = ([*_cut(extent, size)] for extent, size in sides)
    records = journal.iter_records()
    record = next(records, None)
    for index, (t, z, y, x) in enumerate(product(range(extents.t), cuts_z, cuts_y, cuts_x)):
        place = index, t, z.start, z.stop, y.start, y.stop, x.start, x.stop
        pixels = z.size * y.size * x.size
        if record is None or record.index != index:
            yield *place, "pending", pixels, *(None,) * (classes + 4)
            continue
        yield *place, record.status, pixels, *_measured(record, pixels, classes)
        record = next(records, None)


def _cut(extent: int, size: int) -> Iterator[Interval]:
    return (Interval(start, min(start + size, extent)) for start in range(0, extent, size))


def _measured(record: BlockRecord, pixels: int, classes: int) -> Row:
    counts = record.class_counts
    foreground = round((pixels - counts[0]) / pixels, _DIGITS) if counts else None
    return foreground, *(counts or (None,) * classes), record.confidence, record.saturated, record.reason


def _write_csv(file: IO[bytes], columns: Iterable[str], rows: Iterable[Row]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    text.detach()  # written to its end; the file is closed by who opened it


def _write_parquet(file: IO[bytes], columns: dict[str, type], rows: Iterator[Row]) -> None:
    pyarrow, parquet = _import_pyarrow()
    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, GROUP_ROWS)):
            arrays = [
                pyarrow.array(values, field.type)
                for values, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingDependencyError.of_extra("pyarrow", extra="parquet", purpose="writing Parquet") from error
    return pyarrow, pyarrow.parquet
