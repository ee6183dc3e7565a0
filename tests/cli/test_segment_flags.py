"""Flags of `segment` that would do nothing as they came are refused, and the summary says what there is to know."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Outcome
from tests.contract.volumes import chunk_files, write_image
from tests.tiny import make_pixels
from unet_deploy.cli._options import parse_following
from unet_deploy.cli._summary import describe_profile
from unet_deploy.runtime.device_use import DeviceUse
from unet_deploy.runtime.profile import Profile, Stage

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
    flags = ("plan", volume.name, "--model", tiny_model, "--no-probe", "--json")
    planned, all_of_it = json.loads(cli(*flags, "--plane", "1").out), json.loads(cli(*flags).out)
    n, deep = planned["blocks"], planned["block"][0]
    assert (n > 1, planned["blocks_wanted"]) == (True, 1)
    assert planned["disk_bytes"] == -(-all_of_it["disk_bytes"] // n)  # of the blocks of the region
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


def test_a_profile_says_where_the_time_went(cli: Cli, volume: Path, tiny_model: Path) -> None:
    command = ("segment", volume.name, "--model", tiny_model, *FLAGS, "--profile", "p.html")
    done = cli(*command)
    assert done.code == 0, done.err
    rows = {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in done.out.splitlines()}
    assert rows["profile"] == "p.html"
    assert rows["spent"].endswith(" s, of all threads together")
    assert " between first and last tile" in rows["device"]
    assert rows["device"].endswith("% of the run")
    assert "<svg" in (volume.parent / "p.html").read_text(encoding="utf-8")
    again = cli(*command, "--output", "b.zarr")
    assert (again.code, again.out) == (3, "")
    assert again.err.startswith("error[output-exists]: the profile p.html exists")
    assert not (volume.parent / "b.zarr").exists()
    plain = cli(*command[:-2], "--output", "b.zarr", "--json")
    assert json.loads(plain.out)["profile"] is None
    told = cli(*command, "--output", "b.zarr", "--overwrite", "--json")
    found = json.loads(told.out)["profile"]
    assert found["file"] == "p.html"
    assert found["stages"]["infer"]["count"] > 0
    assert 0 < found["device"]["busy_share_of_run"] <= found["device"]["busy_share"] <= 1


def test_a_profile_of_another_kind_is_refused(cli: Cli, volume: Path, tiny_model: Path) -> None:
    done = cli("segment", volume.name, "--model", tiny_model, *FLAGS, "--profile", "p.svg")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error[usage]: the profile p.svg ends in '.svg', .html or .json was expected")
    assert "  fix: name it p.html" in done.err


def use(busy_s: float, **waited: float) -> DeviceUse:
    return DeviceUse(workers=1, between_s=busy_s + sum(waited.values()), busy_s=busy_s, waited=waited)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            use(5.04, reading=0.15, other=0.06),
            "busy 96.0% between first and last tile (waited 0.21 s: reading 0.15, other 0.06), 50.4% of the run",
        ),
        (use(5.0), "busy 100.0% between first and last tile, 50.0% of the run"),
        (
            use(5.0, writing=1.0, labelling=0.004, normalising=0.003),
            "busy 83.2% between first and last tile (waited 1.01 s: writing 1.00, other 0.01), 50.0% of the run",
        ),
        (use(5.0, labelling=0.001), "busy 100.0% between first and last tile, 50.0% of the run"),
        (
            replace(use(5.0), workers=2),
            "busy 100.0% between first and last tile, 25.0% of the run, 2 workers together",
        ),
        (replace(use(0.0), workers=0), "not used: no tile was run"),
    ],
)
def test_the_use_of_the_device_in_words(made: DeviceUse, words: str) -> None:
    others = (Stage(name=name, count=1, seconds=0.3) for name in ("read", "write", "label", "decode", "plan", "finish"))
    stages = (Stage(name="wait", count=2, seconds=9.0), Stage(name="infer", count=2, seconds=5.0), *others)
    profile = Profile(
        path=Path("p.html"), run_s=10.0, stages=stages, device=made, n_spans=4, n_left_out=0, part="half of it"
    )
    assert describe_profile(profile) == [
        ("profile", "p.html, of a part of the volume: half of it"),
        (
            "spent",
            "infer 5.00, read 0.30, write 0.30, label 0.30, decode 0.30, all else 0.60 s, of all threads together",
        ),
        ("device", words),
    ]


def test_where_no_time_went_nothing_is_said_of_it() -> None:
    stages = (Stage(name="plan", count=1, seconds=0.001),)
    unused = replace(use(0.0), workers=0)
    profile = Profile(path=Path("p.html"), run_s=0.01, stages=stages, device=unused, n_spans=1, n_left_out=0)
    assert describe_profile(profile) == [("profile", "p.html"), ("device", "not used: no tile was run")]
