"""docs/cluster.md: its commands and flags exist, its programs parse, and its example on one machine runs."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.tiny import make_pixels, read_provenance, write_image
from unet_deploy import runtime

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOOPBACK = "<!-- tested: loopback -->\n"
PROGRAMS = {"dask": "dask", "unet-deploy": "unet_deploy"}


def commands() -> list[list[str]]:
    """Return the words of every `dask` and `unet-deploy` command on the page, without what stands before it."""
    lines = [line for language, text in FENCE.findall(PAGE) if language == "bash" for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    starts = [next((i for i, word in enumerate(line) if word in PROGRAMS), None) for line in words]
    return [[w for w in line[i:] if w != "&"] for line, i in zip(words, starts, strict=True) if i is not None]


@cache
def flags_of(program: str, verb: str) -> frozenset[str]:
    done = subprocess.run(
        [sys.executable, "-m", PROGRAMS[program], verb, "--help"],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout))


def test_there_is_something_to_test() -> None:
    assert {(words[0], words[1]) for words in commands()} == {
        ("dask", "scheduler"),
        ("dask", "worker"),
        ("unet-deploy", "segment"),
    }
    assert PAGE.count(LOOPBACK) == 1


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_can_be_typed(words: list[str]) -> None:
    program, verb, *rest = words
    used = [word for word in rest if word.startswith("--")]
    assert [flag for flag in used if flag not in flags_of(program, verb)] == []


def test_flags_named_in_the_text_exist() -> None:
    text = FENCE.sub("", PAGE)
    named = {flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<![\w-])--[a-z-]+", code)}
    helm = {"--repo", "--create-namespace", "--generate-name"}
    known = flags_of("unet-deploy", "segment") | flags_of("dask", "worker") | flags_of("dask", "scheduler")
    assert named - known - helm == set()


@pytest.mark.parametrize("program", [text for language, text in FENCE.findall(PAGE) if language == "python"])
def test_a_program_parses(program: str) -> None:
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    (segment,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "segment"]
    assert {keyword.arg for keyword in segment.keywords} <= set(inspect.signature(runtime.segment).parameters)


@pytest.mark.slow
def test_the_example_on_one_machine_runs(tmp_path: Path, tiny_model: Path) -> None:
    """Line by line; what a line leaves running is stopped at the end."""
    found = FENCE.match(PAGE.split(LOOPBACK)[1])
    assert found is not None
    lines = [shlex.split(line) for line in found[2].splitlines()]
    assert [line[-1] == "&" for line in lines] == [True, True, True, False]
    write_image(tmp_path / "volume.zarr", make_pixels((3, 100, 90)))
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    running: list[subprocess.Popen[bytes]] = []
    try:
        for words in lines[:-1]:
            with (tmp_path / f"log{len(running)}.txt").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "dask", *words[1:-1]], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
                    )
                )
            wait_for((tmp_path / "scheduler.json").exists)
        wait_for(lambda: (tmp_path / "log0.txt").read_text(encoding="utf-8").count("Register worker") == len(lines) - 2)
        done = subprocess.run(
            [sys.executable, "-m", "unet_deploy", *lines[-1][1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(30)
    (output,) = tmp_path.glob("volume_segmentation*.zarr")
    assert read_provenance(output)["status"] == "complete"


def wait_for(is_so: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)
