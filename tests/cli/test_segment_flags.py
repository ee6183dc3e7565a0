"""Flags of `segment` that would do nothing as they came are refused, and the summary says what there is to know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome
from tests.contract.volumes import chunk_files, write_image
from tests.tiny import make_pixels
from unet_deploy.cli._options import parse_following

Cli = Callable[..., Outcome]
FLAGS = ("--engine", "onnxruntime-cpu")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Return a volume of six planes, in blocks of several; in the current folder."""
    return write_image(tmp_path / "v.zarr", make_pixels((6, 70, 90)), axes="zyx", version="0.5", levels=1)


@pytest.mark.parametrize(
    ("flags", "headline", "fix"),
    [
        (["--min-object-size", "5"], "--min-object-size came without --write instances", "--write labels"),
        (
            ["--write", "labels", "--objects", "cell", "--object-dimensions", "3", "--object-neighbours", "full"],
            "--objects and --object-dimensions and --object-neighbours came without --write instances",
            "--write labels --write instances",
        ),
        (["--follow-timeout", "5"], "--follow-timeout 5 came without --follow", "--follow --follow-timeout 5"),
        (
            ["--grows", "--until-complete"],
            "--until-complete and --grows came without --follow",
            "--follow --until-complete --grows",
        ),
        (
            ["--follow", "--until-complete", "--follow-timeout", "5"],
            "--follow-timeout 5 and --until-complete came together",
            "leave one of them out",
        ),
        (["--follow", "--strict"], "--strict came with --follow", "leave --strict out"),
        (["--region", "y=0:4,z=1", "--plane", "2"], "--region y=0:4,z=1 and --plane 2", "--region z=2,y=0:4"),
    ],
)
def test_flags_in_vain_are_refused(
    cli: Cli, volume: Path, tiny_model: Path, flags: list[str], headline: str, fix: str
) -> None:
    done = cli("segment", volume.name, "--model", tiny_model, *FLAGS, *flags)
    assert (done.code, done.out) == (2, "")
    first, *_, last = done.err.splitlines()
    assert first.startswith(f"error[usage]: {headline}")
    assert last.startswith("  fix: ")
    assert fix in last
    assert [path.name for path in volume.parent.glob("*_segmentation*")] == []


def test_following_ends_after_ten_minutes_without_news_unless_told() -> None:
    followed = parse_following(True, timeout_s=None, until_complete=False, grows=True)
    assert followed is not None
    assert (followed.timeout_s, followed.grows) == (600, True)
    endless = parse_following(True, timeout_s=None, until_complete=True, grows=False)
    assert endless is not None
    assert endless.timeout_s is None
    assert parse_following(False, timeout_s=None, until_complete=False, grows=False) is None


def test_a_part_says_what_is_left(cli: Cli, volume: Path, tiny_model: Path) -> None:
    planned = json.loads(cli("plan", volume.name, "--model", tiny_model, "--no-probe", "--plane", "1", "--json").out)
    n, deep = planned["blocks"], planned["block"][0]
    assert (n > 1, planned["blocks_wanted"]) == (True, 1)
    part = cli("segment", volume.name, "--model", tiny_model, *FLAGS, "--plane", "1")
    assert part.code == 0
    rows = dict(line.split("  ", 1) for line in part.out.splitlines())
    left = f"done; {n - 1} of {n} blocks are left, which segment does without --region or --plane"
    assert rows["region"].strip() == left
    assert rows["pixels"].strip() == f"37,800 (1 × 6 × 70 × 90 t z y x), {deep * 6300:,} of them made now"
    rest = cli("segment", volume.name, "--model", tiny_model, *FLAGS, "--json")
    said = json.loads(rest.out)
    assert (rest.code, said["blocks_left"], said["blocks_found"]) == (0, 0, 1)


def test_labels_in_the_volume_are_named_once(cli: Cli, volume: Path, tiny_model: Path) -> None:
    done = cli("segment", volume.name, "--model", tiny_model, *FLAGS, "--into-labels", "cells")
    assert done.code == 0
    assert [line.split("  ")[0] for line in done.out.splitlines()][:2] == ["output", "share"]
    assert done.out.splitlines()[0].endswith("cells")


def test_a_partial_result_is_json_too_and_dask_prints_no_traceback(cli: Cli, volume: Path, tiny_model: Path) -> None:
    for chunk in chunk_files(volume / "0")[:1]:
        chunk.write_bytes(b"no zstd")
    done = cli("segment", volume.name, "--model", tiny_model, *FLAGS, "--json")
    assert done.code == 6
    said = json.loads(done.out)
    assert said["status"] == "partial"
    (failed,) = said["failed_blocks"]
    assert failed["reason"].startswith("ReadError: ")
    assert "Traceback" not in done.err
    assert done.err.count("error[partial-result]: ") == 1
