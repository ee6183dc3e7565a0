"""The paper's tables are as printed, and a row finds its place among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_deploy.errors import ConfigurationError, UnknownNameError
from unet_deploy.metrics.published import CTC2015, ISBI2012, TABLES, Column, PublishedTable, Row, place, published_table

PAPER = Path(__file__).resolve().parents[2].parent / "shared" / "paper"


def printed(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value:.{column.decimals}f}"


def ranks(row: Row, table: PublishedTable, by: str | None = None) -> list[tuple[str, str]]:
    return [(item.rank, item.row.name) for item in place(row, table, by=by).rows]


def test_table_1_is_as_printed() -> None:
    assert [
        (row.rank, row.name, *(printed(row.values[c.key], c) for c in ISBI2012.columns)) for row in ISBI2012.rows
    ] == [
        (None, "human values", "0.000005", "0.0021", "0.0010"),
        (1, "u-net", "0.000353", "0.0382", "0.0611"),
        (2, "DIVE-SCI", "0.000355", "0.0305", "0.0584"),
        (3, "IDSIA", "0.000420", "0.0504", "0.0613"),
        (4, "DIVE", "0.000430", "0.0545", "0.0582"),
        (10, "IDSIA-SCI", "0.000653", "0.0189", "0.1027"),
    ]


def test_table_2_is_as_printed() -> None:
    assert [(row.name, *(printed(row.values[c.key], c) for c in CTC2015.columns)) for row in CTC2015.rows] == [
        ("IMCB-SG (2014)", "0.2669", "0.2935"),
        ("KTH-SE (2014)", "0.7953", "0.4607"),
        ("HOUS-US (2014)", "0.5323", "-"),
        ("second-best 2015", "0.8300", "0.4600"),
        ("u-net (2015)", "0.9203", "0.7756"),
    ]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_copy_of_the_paper_has_the_rows(table: PublishedTable) -> None:
    copies = [path.read_text(encoding="utf-8") for path in sorted(PAPER.glob("*.txt"))]
    copies = [text for text in copies if "DIVE-SCI" in text]
    if not copies:
        pytest.skip(f"{PAPER} has no copy of the paper's tables")
    for row in table.rows:
        values = [
            f"{row.values[c.key]:g}"
            if row.name == "second-best 2015"
            else f"{row.values[c.key]:.{c.decimals}f}"
            if row.values[c.key] is not None
            else "-"
            for c in table.columns
        ]
        for text in copies:
            lines = [line.split() for line in text.splitlines() if row.name in line]
            assert any(words[-len(values) :] == values for words in lines), (row.name, values)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_says_where_it_is_from_and_what_it_is_not(table: PublishedTable) -> None:
    assert "Ronneberger, Fischer and Brox" in table.source
    assert f"Table {1 + (table is CTC2015)}" in table.source
    assert "secret test set" in table.notes[0]
    assert published_table(table.key) is table
    assert all(set(row.values) == {column.key for column in table.columns} for row in table.rows)


@pytest.mark.parametrize(
    ("warping", "rank", "after"),
    [
        (0.0, "1", None),
        (0.0001, "1", "human values"),
        (0.000353, "1", "u-net"),  # equal to the best
        (0.000354, "2", "u-net"),
        (0.000355, "2", "DIVE-SCI"),
        (0.0004, "3", "DIVE-SCI"),
        (0.00043, "4", "DIVE"),
        (0.0005, "5-10", "DIVE"),
        (0.000653, "5-10", "IDSIA-SCI"),
        (0.5, "11+", "IDSIA-SCI"),
    ],
)
def test_place_by_warping_error(warping: float, rank: str, after: str | None) -> None:
    placed = place(Row(name="mine", values={"warping_error": warping, "rand_error": 0.04}), ISBI2012)
    assert placed.by.key == "warping_error"
    assert placed.yours.rank == rank
    assert placed.yours.row.name == "mine"
    names = [None, *(item.row.name for item in placed.rows)]
    assert names[names.index("mine") - 1] == after
    others = [(item.rank, item.row.name) for item in placed.rows if not item.is_yours]
    assert others == [("" if row.rank is None else str(row.rank), row.name) for row in ISBI2012.rows]


def test_place_by_another_column_ranks_what_is_printed() -> None:
    assert ranks(Row(name="mine", values={"rand_error": 0.0305}), ISBI2012) == [
        ("", "human values"),
        ("1", "IDSIA-SCI"),
        ("2", "DIVE-SCI"),
        ("2", "mine"),
        ("3", "u-net"),
        ("4", "IDSIA"),
        ("5", "DIVE"),
    ]
    row = Row(name="mine", values={"warping_error": 0.1, "pixel_error": 0.05})
    assert place(row, ISBI2012, by="pixel_error").yours.rank == "1"


def test_higher_is_better_in_table_2() -> None:
    assert ranks(Row(name="mine", values={"phc_u373": 0.9, "dic_hela": None}), CTC2015) == [
        ("1", "u-net (2015)"),
        ("2", "mine"),
        ("2", "second-best 2015"),
        ("3", "KTH-SE (2014)"),
        ("4", "HOUS-US (2014)"),
        ("5", "IMCB-SG (2014)"),
    ]


def test_a_row_without_the_value_comes_last_and_unranked() -> None:
    assert ranks(Row(name="mine", values={"dic_hela": 0.1}), CTC2015) == [
        ("1", "u-net (2015)"),
        ("2", "KTH-SE (2014)"),
        ("3", "second-best 2015"),
        ("4", "IMCB-SG (2014)"),
        ("5+", "mine"),
        ("", "HOUS-US (2014)"),
    ]


# -- errors


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown published table: 'isbi2021'") as caught:
        published_table("isbi2021")
    assert "known: ctc2015, isbi2012" in str(caught.value)
    assert "did you mean 'isbi2012'?" in str(caught.value)
    with pytest.raises(UnknownNameError, match="unknown column of isbi2012: 'rand'"):
        place(Row(name="mine", values={"rand": 0.1}), ISBI2012)
    with pytest.raises(UnknownNameError, match="unknown column of ctc2015: 'PhC-U373'"):
        place(Row(name="mine", values={"phc_u373": 0.1}), CTC2015, by="PhC-U373")


@pytest.mark.parametrize(("value", "came"), [(92.03, "92.03"), (-0.1, "-0.1"), (float("nan"), "nan")])
def test_values_are_fractions(value: float, came: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"phc_u373 of 'mine' is {came}, not in \[0, 1\]") as caught:
        place(Row(name="mine", values={"phc_u373": value}), CTC2015)
    assert "fix: give fractions, not percent" in str(caught.value)


def test_a_row_needs_a_value_to_rank_by() -> None:
    with pytest.raises(ConfigurationError, match="'mine' has no value for phc_u373 or dic_hela"):
        place(Row(name="mine", values={"phc_u373": None}), CTC2015)
    with pytest.raises(ConfigurationError, match="'mine' has no value for dic_hela\n"):
        place(Row(name="mine", values={"phc_u373": 0.5}), CTC2015, by="dic_hela")
