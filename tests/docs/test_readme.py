"""What README.md and the pages of docs/ show can be typed: commands parse, examples run, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import Outcome
from tests.tiny import make_pixels, write_image

Cli = Callable[..., Outcome]
ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    page.name: page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name != "experiments.md"  # a diary: what was tried, with commands of its day
}
README = PAGES["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
MAX_LINES = 40


def blocks(language: str, pages: Iterable[str] = PAGES) -> list[str]:
    """Return the contents of all fenced blocks of a language, by default on all pages."""
    return [match[2] for page in pages for match in FENCE.finditer(PAGES[page]) if match[1] == language]


def commands() -> list[list[str]]:
    """Return the words of every `unet-deploy` command in bash blocks."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    parts = [part.strip().removeprefix("$ ") for line in text.splitlines() for part in re.split(r"&&|;|\|", line)]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("unet-deploy ")]


COMMANDS = commands()
EXAMPLES = blocks("python", ["README.md", "pipelines.md"])  # recipes for clusters need one


@cache
def flags_of(verb: str) -> frozenset[str]:
    """Return the flags that a verb's help names."""
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", verb, "--help"],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=Path(sys.prefix),
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=60,
    )
    assert done.returncode == 0, f"there is no verb {verb!r}: {done.stderr}"
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout)) | {"--debug"}


def test_there_is_something_to_test() -> None:
    verbs = {words[0] for words in COMMANDS}
    assert {"train", "export", "segment", "demo"} <= verbs
    assert len(EXAMPLES) >= 4
    assert {"README.md", "pipelines.md", "cluster.md", "inputs.md"} <= PAGES.keys()
    assert all(FENCE.sub("", page).count("```") == 0 for page in PAGES.values())  # every fence was seen


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_can_be_typed(words: list[str]) -> None:
    verb, *rest = words
    known = flags_of(verb)
    used = [word.partition("=")[0] for word in rest if word.startswith("-")]
    assert [flag for flag in used if flag not in known] == []


def test_the_test_command_is_marked() -> None:
    """`.ci/run` runs the block after the mark, line by line."""
    parts = re.split(r"^<!-- ci: tests -->\n", README, flags=re.MULTILINE)
    assert len(parts) == 2
    found = FENCE.match(parts[1])
    assert found is not None, "no fenced block stands right after the mark"
    lines = found[2].splitlines()
    assert any("pip install" in line for line in lines)
    assert any("pytest" in line for line in lines)


@pytest.mark.parametrize("page", sorted({"README.md", "pipelines.md", "inputs.md"}))
def test_inline_flags_exist(page: str) -> None:
    """Flags named in the text, outside blocks."""
    text = FENCE.sub("", PAGES[page])
    codes = [code for code in re.findall(r"`([^`\n]+)`", text) if not code.startswith("python benchmarks/")]
    named = {flag for code in codes for flag in re.findall(r"--[a-z-]+", code)}
    known = frozenset[str]().union(
        *(
            flags_of(verb)
            for verb in ("train", "export", "adopt", "segment", "plan", "evaluate", "inspect", "bench", "demo")
        )
    )
    assert named
    assert sorted(named - known) == []


@pytest.mark.parametrize(("page", "target"), sorted({(p, t) for p, text in PAGES.items() for t in LINK.findall(text)}))
def test_a_link_inside_the_repository_leads_somewhere(page: str, target: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    if not re.match(r"[a-z]+:", target):
        assert (folder / target.partition("#")[0]).exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=[str(i) for i in range(len(EXAMPLES))])
def test_an_example_runs(example: str, tmp_path: Path, tiny_model: Path) -> None:
    """Beside a small volume of the name it uses, with a tiny network where it leaves the model to the program."""
    assert example.count("\n") <= MAX_LINES
    names = set(re.findall(r"[\"']([\w.*-]+\.zarr)(?:/0)?[\"']", example))
    inputs = {name for name in names if "segmentation" not in name}
    assert inputs, "the example reads no volume"
    for name in inputs:
        write_image(tmp_path / name.replace("*", ".ome"), make_pixels((2, 100, 90)))
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_to_fill_in() -> None:
    assert [re.findall(r"@@\w+@@|\bTODO\b|\bXXX\b", page) for page in PAGES.values()] == [[]] * len(PAGES)


def test_the_snakemake_rule_runs(cli: Cli, tmp_path: Path, tiny_model: Path) -> None:
    """Its shell command, with what Snakemake would put into it, and its promise that a second attempt goes on."""
    (rule,) = blocks("snakemake")
    _, _, shell = rule.partition("shell:")
    words = "".join(re.findall(r'"([^"]*)"', shell))
    assert "touch(" in rule  # the store itself is no declared output: it would be deleted after a failure
    for name in ("raw", "segmented"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "raw" / "a.ome.zarr", make_pixels((1, 60, 70)))
    for name, value in (
        ("{input}", "raw/a.ome.zarr"),
        ("{wildcards.sample}", "a"),
        ("{resources.mem_mb}", "8000"),
        (" --strict", ""),  # noise is unlike any training image
    ):
        assert name in words
        words = words.replace(name, value)
    program, *arguments = shlex.split(words)
    assert program == "unet-deploy"
    done = cli(*arguments, "--model", tiny_model, "--no-space-check")
    assert done.code == 0, done.err
    assert (tmp_path / "segmented" / "a.csv").is_file()
