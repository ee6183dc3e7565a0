"""The paper's Tables 1 and 2 as data, and a place for one's own row among them.

1. The tables hold what the paper prints (Ronneberger, Fischer and Brox 2015), rows the paper left out included as gaps.
2. `place` ranks a row by one column: its rank is one more than the number of strictly better programs. Where the paper
   skips rows (ranks 5 to 9 of Table 1), the rank is the range that is certain.
3. The published rows were measured on the challenges' secret test sets. Another row was not, so it stands beside them
   for orientation; `PublishedTable.notes` say so and belong under every print of a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unet_deploy.errors import ConfigurationError, UnknownNameError

PAPER = (
    "Ronneberger, Fischer and Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, "
    "MICCAI 2015, LNCS 9351:234-241, arXiv:1505.04597"
)
TEST_SET_NOTE = (
    "The published rows were measured on the challenge's secret test set. "
    "Your row was measured on the images you gave: the comparison is for orientation, it is no entry in the challenge."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measure of a table."""

    key: str
    title: str
    decimals: int
    lower_is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row; `values` by column key, None where the table has none; `rank` as printed, None where it has none."""

    name: str
    values: Mapping[str, float | None]
    rank: int | None = None
    is_program: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """A table of the paper, its rows in the paper's order. `ranked_by` is the column its printed ranks go by."""

    key: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    ranked_by: str | None
    notes: tuple[str, ...]

    def column(self, key: str) -> Column:
        """Return the column of that key.

        Raises
        ------
        UnknownNameError
            If there is none.
        """
        for column in self.columns:
            if column.key == key:
                return column
        raise UnknownNameError.of_unknown_name(f"column of {self.key}", key, [column.key for column in self.columns])


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRow:
    """A row in its place; `rank` is text such as "2", "5-10", "11+", or empty for a row that takes no part."""

    row: Row
    rank: str
    is_yours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedTable:
    """A published table with one more row, best first by the column `by`; rows without a value there come last."""

    table: PublishedTable
    by: Column
    rows: tuple[PlacedRow, ...]

    @property
    def yours(self) -> PlacedRow:
        """The row that was placed."""
        return next(placed for placed in self.rows if placed.is_yours)


def _rows(columns: tuple[Column, ...], *rows: tuple[str, int | None, tuple[float | None, ...]]) -> tuple[Row, ...]:
    keys = [column.key for column in columns]
    return tuple(
        Row(name=name, rank=rank, values=dict(zip(keys, values, strict=True)), is_program="human" not in name)
        for name, rank, values in rows
    )


_ERRORS = (
    Column(key="warping_error", title="Warping Error", decimals=6, lower_is_better=True),
    Column(key="rand_error", title="Rand Error", decimals=4, lower_is_better=True),
    Column(key="pixel_error", title="Pixel Error", decimals=4, lower_is_better=True),
)
_IOUS = (
    Column(key="phc_u373", title="PhC-U373", decimals=4, lower_is_better=False),
    Column(key="dic_hela", title="DIC-HeLa", decimals=4, lower_is_better=False),
)

ISBI2012 = PublishedTable(
    key="isbi2012",
    title="Table 1: ranking on the EM segmentation challenge (6 March 2015), sorted by warping error",
    source=f"{PAPER}, Table 1",
    columns=_ERRORS,
    rows=_rows(
        _ERRORS,
        ("human values", None, (0.000005, 0.0021, 0.0010)),
        ("u-net", 1, (0.000353, 0.0382, 0.0611)),
        ("DIVE-SCI", 2, (0.000355, 0.0305, 0.0584)),
        ("IDSIA", 3, (0.000420, 0.0504, 0.0613)),
        ("DIVE", 4, (0.000430, 0.0545, 0.0582)),
        ("IDSIA-SCI", 10, (0.000653, 0.0189, 0.1027)),
    ),
    ranked_by="warping_error",
    notes=(
        TEST_SET_NOTE,
        "The u-net row is the mean over 7 rotated versions of the input, without further processing.",
        "Ranks 5 to 9 are not in the paper.",
    ),
)
CTC2015 = PublishedTable(
    key="ctc2015",
    title="Table 2: segmentation results (IOU) on the ISBI cell tracking challenge 2015",
    source=f"{PAPER}, Table 2",
    columns=_IOUS,
    rows=_rows(
        _IOUS,
        ("IMCB-SG (2014)", None, (0.2669, 0.2935)),
        ("KTH-SE (2014)", None, (0.7953, 0.4607)),
        ("HOUS-US (2014)", None, (0.5323, None)),
        ("second-best 2015", None, (0.83, 0.46)),
        ("u-net (2015)", None, (0.9203, 0.7756)),
    ),
    ranked_by=None,
    notes=(
        TEST_SET_NOTE,
        "The measure is the challenge's SEG, a mean of intersections over unions. "
        "The second-best of 2015 is printed with two digits.",
    ),
)
TABLES: Mapping[str, PublishedTable] = {table.key: table for table in (ISBI2012, CTC2015)}


def published_table(key: str) -> PublishedTable:
    """Return the table ``isbi2012`` or ``ctc2015``.

    Raises
    ------
    UnknownNameError
        If it is neither.
    """
    if key not in TABLES:
        raise UnknownNameError.of_unknown_name("published table", key, TABLES)
    return TABLES[key]


def place(row: Row, table: PublishedTable, *, by: str | None = None) -> PlacedTable:
    """Insert a row among the published ones, best first.

    Parameters
    ----------
    row
        Yours: a name, and values in [0, 1] for one or more of the table's columns. Its `rank` is not looked at.
    table
        `ISBI2012` or `CTC2015`.
    by
        The key of the column to rank by; the first column that the row has a value for unless told.

    Returns
    -------
    PlacedTable
        All rows, best first, yours after equal ones. By the column that the paper ranks by, published rows keep the
        rank printed; by another, ranks count the programs that the paper prints a value for.

    Raises
    ------
    UnknownNameError
        If `by` or a key of the row's values is no column of the table.
    ConfigurationError
        If a value is not in [0, 1], or the row has none to rank by.

    Examples
    --------
    >>> placed = place(Row(name="mine", values={"warping_error": 0.0005}), ISBI2012)
    >>> [(item.rank, item.row.name) for item in placed.rows][-3:]
    [('4', 'DIVE'), ('5-10', 'mine'), ('10', 'IDSIA-SCI')]
    """
    _require_values(row, table)
    column = _column_to_rank_by(row, table, by)
    sign = 1 if column.lower_is_better else -1

    def cost(item: Row) -> float:
        value = item.values.get(column.key)
        return math.inf if value is None else sign * value

    published = sorted(table.rows, key=cost)  # stable: the paper's order among equals
    ranks = _published_ranks(published, table, column)
    others = [PlacedRow(row=item, rank=rank, is_yours=False) for item, (rank, _) in zip(published, ranks, strict=True)]
    competing = [(cost(item), number) for item, (_, number) in zip(published, ranks, strict=True) if number is not None]
    yours = PlacedRow(row=row, rank=_rank_among(competing, cost(row)), is_yours=True)
    at = sum(cost(item) <= cost(row) for item in published)
    return PlacedTable(table=table, by=column, rows=(*others[:at], yours, *others[at:]))


def _published_ranks(rows: list[Row], table: PublishedTable, by: Column) -> list[tuple[str, int | None]]:
    """Return each row's rank as text and number: the printed one, or the place among programs with a value."""
    ranks: list[tuple[str, int | None]] = []
    place_so_far = 0
    for row in rows:
        takes_part = row.is_program and row.values[by.key] is not None
        place_so_far += takes_part
        number = (row.rank if table.ranked_by == by.key else place_so_far) if takes_part else None
        ranks.append(("" if number is None else str(number), number))
    return ranks


def _rank_among(competing: list[tuple[float, int]], cost: float) -> str:
    """Return the rank of `cost` among (cost, rank) pairs, best first: "3", or the range that a gap leaves open."""
    first = 1 + max((rank for other, rank in competing if other < cost), default=0)
    last = min((rank for other, rank in competing if other >= cost), default=None)
    if last is None:
        return f"{first}+"
    return str(first) if first == last else f"{first}-{last}"


def _column_to_rank_by(row: Row, table: PublishedTable, by: str | None) -> Column:
    candidates = table.columns if by is None else (table.column(by),)
    for column in candidates:
        if row.values.get(column.key) is not None:
            return column
    raise ConfigurationError(
        f"{row.name!r} has no value for {' or '.join(column.key for column in candidates)}",
        f"{table.title}",
        fix="give a value of the column to rank by",
    )


def _require_values(row: Row, table: PublishedTable) -> None:
    for key, value in row.values.items():
        column = table.column(key)
        if value is not None and not 0 <= value <= 1:  # not a number is refused too
            raise ConfigurationError(
                f"{column.key} of {row.name!r} is {value:g}, not in [0, 1]",
                f"{table.title}",
                fix="give fractions, not percent",
            )
