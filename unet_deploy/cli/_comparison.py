"""The user's row among those of the paper's Table 1 or 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_deploy.cli._evaluation import Evaluation, Table
from unet_deploy.cli._inputs import Inputs
from unet_deploy.metrics.published import CTC2015, PlacedTable, PublishedTable, Row, place, published_table

_DATA_SETS = {"phc_u373": ("u373",), "dic_hela": ("dic", "hela")}
"""Columns of Table 2, and what a path of that data set contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A published table with the user's row."""

    placed: PlacedTable

    @property
    def table(self) -> Table:
        """In words; the user's row starts with ``>``."""
        columns = self.placed.table.columns
        rows = []
        for item in self.placed.rows:
            values = [
                "-" if (value := item.row.values.get(c.key)) is None else f"{value:.{c.decimals}f}" for c in columns
            ]
            rows.append((f"{'>' if item.is_yours else ' '} {item.row.name}", item.rank or "-", *values))
        better = "lower" if self.placed.by.lower_is_better else "higher"
        return Table(
            title=f"{self.placed.table.title}; ranked by {self.placed.by.title}, {better} is better",
            header=("  name", "rank", *(column.title for column in columns)),
            rows=tuple(rows),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What belongs under every print of the table."""
        return (*self.placed.table.notes, self.placed.table.source)

    def to_object(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {
            "table": self.placed.table.key,
            "ranked_by": self.placed.by.key,
            "rank": self.placed.yours.rank,
            "rows": [
                {"name": item.row.name, "rank": item.rank, "is_yours": item.is_yours, "values": dict(item.row.values)}
                for item in self.placed.rows
            ],
            "notes": list(self.notes),
        }


def compare_with(
    key: str, evaluation: Evaluation, inputs: Inputs, *, by: str | None, say: Callable[[str], None]
) -> Comparison:
    """Place the scores in a published table.

    Raises
    ------
    UnknownNameError
        If there is no such table, or `by` is none of its columns.
    ConfigurationError
        If there is no score to rank by, for want of any object.
    """
    table = published_table(key)
    name = f"yours ({inputs.name})"
    if table is CTC2015:
        column = by or _guess_data_set(inputs, table, say=say)
        return Comparison(placed=place(Row(name=name, values={column: evaluation.value("seg")}), table, by=column))
    values = {column.key: evaluation.value(column.key) for column in table.columns}
    return Comparison(placed=place(Row(name=name, values=values), table, by=by))


def _guess_data_set(inputs: Inputs, table: PublishedTable, *, say: Callable[[str], None]) -> str:
    path = str(Path(inputs.paired.truth.where).resolve()).lower()
    for column, words in _DATA_SETS.items():
        if all(word in path for word in words):
            return column
    first, *others = (column.key for column in table.columns)
    say(
        f"compare: the truth's path names no data set of {table.key}; SEG stands under {first} "
        f"(--compare-by {' or '.join(others)} for the other)"
    )
    return first
