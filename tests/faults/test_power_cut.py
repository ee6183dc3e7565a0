"""A machine that goes down while a run writes: what the journal has may not be on the disk, and is made again."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import make_pixels, read_arrays, write_image
from unet_deploy.errors import InterruptedRunError
from unet_deploy.runtime import segment
from unet_deploy.runtime.journal import journal_path, read_journal, reopen_journal
from unet_deploy.runtime.last_blocks import has_restarted_since

PLANES = 6
BLACK = 1
"""The plane without contrast, which is answered without the network."""

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A volume, a run of it that was broken off, and a whole one; the blocks make both levels of the pyramid."""
    folder = tmp_path_factory.mktemp("power")
    pixels = make_pixels((PLANES, 600, 70))
    pixels[BLACK] = 0
    write_image(folder / "v.zarr", pixels)
    segment(folder / "v.zarr", model=tiny_model, output=folder / "whole.zarr", threads=1)
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError):
        segment(
            folder / "v.zarr",
            model=tiny_model,
            output=folder / "begun.zarr",
            threads=1,
            should_stop=lambda: next(asked) > 2,
        )
    return folder


@pytest.fixture
def cut(tmp_path: Path, folder: Path) -> Path:
    """An output as a power cut may leave it, but for the chunks: its journal is older than this machine's start."""
    output = tmp_path / "out.zarr"
    shutil.copytree(folder / "begun.zarr", output)
    os.utime(journal_path(output), (0, 0))
    return output


def lose(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def a_chunk(output: Path, array: str, *, c: int | None = None) -> Path:
    """Return the first chunk of a plane that is done and not empty."""
    journal = read_journal(output)
    assert journal is not None
    plane = next(record.index for record in journal.iter_records() if record.status == "done")
    return output / array / "c" / (f"{plane}/0/0" if c is None else f"{c}/{plane}/0/0")


@pytest.fixture
def go_on(folder: Path, cut: Path, tiny_model: Path) -> Callable[[], None]:
    def segment_it() -> None:
        segment(folder / "v.zarr", model=tiny_model, output=cut, threads=1)

    return segment_it


@pytest.mark.parametrize("damage", [lose, empty, zero])
@pytest.mark.parametrize(
    ("array", "c", "n_lost"),
    [("labels/segmentation/0", None, 1), ("0", 0, 1), ("0", 1, 1), ("labels/segmentation/1", None, 0), ("1", 0, 0)],
)
def test_a_chunk_that_never_reached_the_disk(
    damage: Damage,
    array: str,
    c: int | None,
    n_lost: int,
    cut: Path,
    folder: Path,
    go_on: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(a_chunk(cut, array, c=c))
    with caplog.at_level(logging.WARNING, "unet_deploy"):
        go_on()
    came, whole = read_arrays(cut), read_arrays(folder / "whole.zarr")
    assert came.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(came[name], values, err_msg=name)
    said = [r.getMessage() for r in caplog.records if r.name == "unet_deploy.runtime.last_blocks"]
    text = "this machine went down while the run wrote; blocks that never reached the disk, and are made again: 1"
    assert said == [text] * n_lost


def test_a_machine_that_was_not_restarted_lost_nothing(cut: Path, go_on: Callable[[], None]) -> None:
    """So nothing that is done is read again, however much there is of it."""
    assert has_restarted_since(journal_path(cut))
    os.utime(journal_path(cut))
    assert not has_restarted_since(journal_path(cut))
    chunk = a_chunk(cut, "labels/segmentation/0")
    os.utime(chunk, (1, 1))
    go_on()
    assert chunk.stat().st_mtime == 1


def test_a_run_that_did_not_get_to_look_leaves_it_to_the_next(cut: Path) -> None:
    """Opening the journal cuts off what a kill left of its last line, which changes nothing of when it was written."""
    before = read_journal(cut)
    with journal_path(cut).open("ab") as file:
        file.write(b"half a li")
    os.utime(journal_path(cut), (0, 0))
    assert before is not None
    reopen_journal(cut, before.fingerprint).close()
    assert b"half a li" not in journal_path(cut).read_bytes()
    assert has_restarted_since(journal_path(cut))
