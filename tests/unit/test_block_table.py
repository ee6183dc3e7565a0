"""The table of blocks: what a row says, how a table is written, and where it may go."""

from __future__ import annotations

import csv
import sys
import tracemalloc
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import no_file_above
from unet_deploy.card import Network
from unet_deploy.errors import (
    MissingDependencyError,
    NoSpaceError,
    OutputExistsError,
    OutputPathError,
    UsageError,
)
from unet_deploy.runtime.block_table import GROUP_ROWS, check_table_path, write_block_table
from unet_deploy.runtime.journal import BlockRecord, Journal, create_journal
from unet_deploy.runtime.plan import Extents, SegmentationPlan, WriteGrid

NETWORK = Network(depth=1, base_width=2, in_channels=1, classes=2)
CLASSES = ("background", "membrane")
COLUMNS = [
    *("block", "t", "z_start", "z_stop", "y_start", "y_stop", "x_start", "x_stop", "status", "pixels"),
    *("foreground_fraction", "background_pixels", "membrane_pixels"),
    *("mean_confidence", "saturated_fraction", "reason"),
]


def plan_of(extents: Extents, block: tuple[int, int, int] = (2, 64, 64)) -> SegmentationPlan:
    return SegmentationPlan(
        network=NETWORK,
        extents=extents,
        grid=WriteGrid(chunk=block),
        tile_y=68,
        tile_x=68,
        batch=1,
        block_shape=block,
    )


PLAN = plan_of(Extents(t=2, z=3, y=100, x=70))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with create_journal(tmp_path / "out.zarr", {}) as made:
        made.add(BlockRecord(index=0, status="failed", reason='ReadError: chunk "0, 1"\nis damaged'))
        made.add(BlockRecord(index=9, status="empty", class_counts=(768, 0), confidence=1.0, saturated=1.0))
        made.add(BlockRecord(index=3, status="done", class_counts=(324, 108), confidence=0.875, saturated=0.0))
        made.add(BlockRecord(index=1, status="done", saturated=0.25))
        yield made


def test_a_row_a_block(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "blocks.csv"
    write_block_table(path, journal, PLAN, class_names=CLASSES)
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == COLUMNS
    assert len(rows) == PLAN.n_blocks == 16
    for row, block in zip(rows, PLAN.blocks(), strict=True):
        place = (block.index, block.t, block.z.start, block.z.stop, block.y.start, block.y.stop)
        assert row[:8] == [str(n) for n in (*place, block.x.start, block.x.stop)]
        assert row[9] == str(block.pixels)
    said = {int(row[0]): [row[8], *row[10:]] for row in rows}
    assert said[0] == ["failed", "", "", "", "", "", 'ReadError: chunk "0, 1"\nis damaged']
    assert said[1] == ["done", "", "", "", "", "0.25", ""]
    assert said[3] == ["done", "0.25", "324", "108", "0.875", "0.0", ""]
    assert said[9] == ["empty", "0.0", "768", "0", "1.0", "1.0", ""]
    assert said[2] == ["pending", "", "", "", "", "", ""]
    assert [*tmp_path.glob("*.partial")] == []


def test_parquet_says_the_same(tmp_path: Path, journal: Journal) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write_block_table(tmp_path / "blocks.parquet", journal, PLAN, class_names=CLASSES)
    write_block_table(tmp_path / "blocks.csv", journal, PLAN, class_names=CLASSES)
    table = parquet.read_table(tmp_path / "blocks.parquet")
    assert table.column_names == COLUMNS
    kinds = {name: str(table.schema.field(name).type) for name in ("block", "status", "mean_confidence", "reason")}
    assert kinds == {"block": "int64", "status": "string", "mean_confidence": "double", "reason": "string"}
    with (tmp_path / "blocks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    as_text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table.to_pylist()]
    assert as_text == rows


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_large_table_is_never_held_whole(tmp_path: Path, journal: Journal, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    plan = plan_of(Extents(t=1, z=1, y=64 * 200, x=64 * 250), block=(1, 64, 64))
    assert plan.n_blocks == 50_000 > 2 * GROUP_ROWS
    write_block_table(tmp_path / f"first{suffix}", journal, PLAN, class_names=CLASSES)  # imports are not its memory
    tracemalloc.start()
    try:
        write_block_table(tmp_path / f"blocks{suffix}", journal, plan, class_names=CLASSES)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < (2e6 if suffix == ".csv" else 20e6), most  # a group of rows, as objects and as columns


def test_many_row_groups_hold_every_row(tmp_path: Path, journal: Journal) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    plan = plan_of(Extents(t=1, z=1, y=64 * 128, x=64 * 129), block=(1, 64, 64))
    write_block_table(tmp_path / "blocks.parquet", journal, plan, class_names=CLASSES)
    with parquet.ParquetFile(tmp_path / "blocks.parquet") as file:
        assert file.num_row_groups == 2
        assert file.read(["block"])["block"].to_pylist() == list(range(plan.n_blocks))


def test_an_earlier_table_stays_until_the_new_one_is_whole(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "blocks.csv"
    path.write_text("earlier")
    with no_file_above(300), pytest.raises(NoSpaceError, match=r"^the disk is full: ") as caught:
        write_block_table(path, journal, PLAN, class_names=CLASSES)
    assert f"while writing the table {path}" in str(caught.value)
    assert path.read_text() == "earlier"
    assert [*tmp_path.glob("*.partial")] == []
    write_block_table(path, journal, PLAN, class_names=CLASSES)
    assert path.read_text().startswith("block,t,")


def test_a_folder_that_went_away(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "gone" / "blocks.csv"
    with pytest.raises(
        OutputPathError, match=r"^the table .* cannot be written: No such file or directory\n"
    ) as caught:
        write_block_table(path, journal, PLAN, class_names=CLASSES)
    assert "FileNotFoundError at " in str(caught.value)
    assert "fix: choose a place where you may write" in str(caught.value)


@pytest.mark.parametrize(("name", "came"), [("blocks.xlsx", "'.xlsx'"), ("blocks", "'nothing'")])
def test_other_suffixes_are_refused(tmp_path: Path, name: str, came: str) -> None:
    with pytest.raises(UsageError, match=rf"ends in {came}, \.csv or \.parquet was expected") as caught:
        check_table_path(tmp_path / name, overwrite=True)
    assert "fix: name it blocks.csv" in str(caught.value)


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match=r"the folder of the table .* does not exist") as caught:
        check_table_path(tmp_path / "none" / "blocks.csv", overwrite=False)
    assert f"{tmp_path / 'none'} was expected to be a folder" in str(caught.value)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "Blocks.CSV"
    check_table_path(path, overwrite=False)
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"the table .* exists") as caught:
        check_table_path(path, overwrite=False)
    assert "fix: choose another name, or replace it with --overwrite" in str(caught.value)
    check_table_path(path, overwrite=True)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_run_that_goes_on_replaces_its_own_table_and_nothing_else(
    tmp_path: Path, journal: Journal, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = tmp_path / f"blocks{suffix}"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"the table .* exists") as caught:
        check_table_path(path, overwrite=False, goes_on=True)
    assert "remove it yourself: it is no table of blocks" in caught.value.fix  # --overwrite would begin the run anew
    write_block_table(path, journal, PLAN, class_names=CLASSES)
    check_table_path(path, overwrite=False, goes_on=True)
    with pytest.raises(OutputExistsError, match=r"the table .* exists"):
        check_table_path(path, overwrite=False)


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "blocks.csv").mkdir()
    with pytest.raises(OutputPathError, match=r"the table .* is no file"):
        check_table_path(tmp_path / "blocks.csv", overwrite=True)


def test_no_table_in_a_store(tmp_path: Path) -> None:
    store = tmp_path / "v.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    with pytest.raises(OutputPathError, match=r"lies inside the Zarr store") as caught:
        check_table_path(store / "blocks.csv", overwrite=False)
    assert f"fix: write it to {tmp_path / 'blocks.csv'}" in str(caught.value)


class Without:
    """Finds no pyarrow, as where it is not installed."""

    def __init__(self, blamed: str) -> None:
        self.blamed = blamed

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError(f"No module named {self.blamed!r}", name=self.blamed)
        return None


@pytest.fixture
def hidden() -> Iterator[Without]:
    finder = Without("pyarrow")
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "pyarrow"}
    sys.meta_path.insert(0, finder)
    yield finder
    sys.meta_path.remove(finder)
    sys.modules.update(kept)


def test_parquet_without_pyarrow_is_refused_before_work(tmp_path: Path, hidden: Without) -> None:
    check_table_path(tmp_path / "blocks.csv", overwrite=False)
    with pytest.raises(MissingDependencyError, match=r"writing Parquet needs the package 'pyarrow'") as caught:
        check_table_path(tmp_path / "blocks.parquet", overwrite=False)
    assert "fix: pip install 'unet-deploy[parquet]'" in str(caught.value)
    hidden.blamed = "something_pyarrow_wants"
    with pytest.raises(ModuleNotFoundError, match="something_pyarrow_wants"):
        check_table_path(tmp_path / "blocks.parquet", overwrite=False)
    assert not [*tmp_path.iterdir()]
