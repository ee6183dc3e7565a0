"""``unet-deploy adopt``: another program's network streams a volume, tiled as in one pass, from then on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Outcome
from tests.foreign_graphs import logits_of, monai_like, save, smp_like
from tests.tiny import make_pixels, read_arrays, write_array
from unet_deploy.cli.adopt import parse_numbers, split_names
from unet_deploy.errors import ConfigurationError

pytest.importorskip("onnxruntime", reason="adopting needs onnxruntime: extra 'cpu'")

Cli = Callable[..., Outcome]
NORM = ("--mean", "128", "--std", "40")


def rows(text: str) -> dict[str, str]:
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines())


def test_a_foreign_network_streams(cli: Cli, tmp_path: Path) -> None:
    model = monai_like()
    save(model, tmp_path / "other.onnx")
    outcome = cli(
        "adopt", "other.onnx", "-o", "ours.onnx", *NORM, "--classes", "background,cell,border", "--threads", "1"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[:2] == ["adopt: looking at the graph", "adopt: finding divisor, context and cost"]
    shown = rows(outcome.out)
    assert shown["network"] == "other: adopted network, divisor 4, context 8 px, 1 channel(s), 3 classes"
    assert shown["context"] == (
        "8 px: by its graph a core needs 7 px before and 8 after it, impulses were felt over 7 and 8"
    )
    assert shown["tiles"] == "4·k px from 20, divisor 4"
    assert shown["classes"] == "background, cell, border"
    assert shown["next"] == "unet-deploy segment VOLUME.zarr --model ours.onnx"

    pixels = make_pixels((2, 90, 70))
    write_array(tmp_path / "v.zarr", pixels, names="zyx")
    padded = np.pad(pixels, ((0, 0), (8, 14), (8, 14)), mode="reflect").astype(np.float32)
    logits = logits_of(model, (padded[:, None] - 128) / np.float32(40))[:, :, 8 : 8 + 90, 8 : 8 + 70]
    for tile in ("24", "48,36", "116"):
        ran = cli("segment", "v.zarr", "--model", "ours.onnx", "-o", f"{tile}.zarr", "--tile", tile, "--threads", "1")
        assert ran.code == 0, ran.err
        labels = read_arrays(tmp_path / f"{tile}.zarr")["labels/segmentation/0"]
        best = np.sort(logits, axis=1)
        is_clear = best[:, -1] - best[:, -2] > 1e-4
        assert is_clear.mean() > 0.99
        assert np.array_equal(labels.reshape(2, 90, 70)[is_clear], logits.argmax(axis=1)[is_clear])
        assert len(np.unique(labels)) > 1


def test_what_it_has_become(cli: Cli, tmp_path: Path) -> None:
    save(smp_like(head="Sigmoid"), tmp_path / "other.onnx")
    outcome = cli("adopt", "other.onnx", "--percentiles", "1,99.8", "--licence", "MIT", "--json", "--threads", "1")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["output"], facts["divisor"], facts["context"]) == ("adopted.onnx", 4, 12)
    assert facts["reach"] == {"before": 12, "after": 9}
    assert facts["proof"]["passed"] is True
    assert len(facts["changed"]) == 2

    inspected = cli("inspect", "adopted.onnx")
    assert inspected.code == 0
    shown = rows(inspected.out)
    assert shown["network"] == "adopted network, divisor 4, context 12 px, 1 channel(s), 2 classes"
    assert shown["data"] == "adopted; training unknown"
    assert re.fullmatch(r"other\.onnx, sha256 [0-9a-f]{16}…, by sketch, operator set 18", shown["adopted"])
    assert "training" not in shown
    assert shown["licence"] == "MIT"
    assert json.loads(cli("inspect", "adopted.onnx", "--json").out)["network"]["architecture"] == "adopted"

    checked = cli("check", "adopted.onnx", "--engine", "onnxruntime-cpu", "--threads", "1")
    assert checked.code == 0, checked.err
    shown = rows(checked.out)
    assert shown["network"] == "adopted network, divisor 4, context 12 px"
    assert shown["declared"] == "context 12 px before and 12 after a core, divisor 4"
    assert shown["verdict"] == "passed"


def test_a_tile_that_it_cannot_take(cli: Cli, tmp_path: Path) -> None:
    save(smp_like(), tmp_path / "other.onnx")
    assert cli("adopt", "other.onnx", *NORM, "--threads", "1").code == 0
    write_array(tmp_path / "v.zarr", make_pixels((2, 90, 70)), names="zyx")
    outcome = cli("plan", "v.zarr", "--model", "adopted.onnx", "--tile", "45", "--no-probe")
    assert outcome.code == 2
    assert "tile side 45 on axis y is not 4·k with at least 28" in outcome.err
    assert cli("plan", "v.zarr", "--model", "adopted.onnx", "--no-probe").code == 0


def test_an_instance_norm_is_refused(cli: Cli, tmp_path: Path) -> None:
    save(monai_like(norm="instance"), tmp_path / "other.onnx")
    outcome = cli("adopt", "other.onnx", *NORM)
    assert (outcome.code, outcome.out) == (4, "")
    assert "error[adoption]: other.onnx cannot be tiled without seams: it has 3 InstanceNormalization" in outcome.err
    assert not (tmp_path / "adopted.onnx").exists()


@pytest.mark.parametrize(
    ("flags", "says", "fix"),
    [
        (("--mean", "a"), "--mean a came, numbers were expected", "--mean 128"),
        (("--std", "1", "--std", "b"), "--std 1 b came, numbers were expected", "--std 40"),
        (("--percentiles", "1"), "--percentiles 1 came, two numbers were expected", "--percentiles 1,99.8"),
        (("--value-range", "0:1:2"), "--value-range 0:1:2 came, two numbers were expected", "--value-range 0:255"),
        (("--pixel-size-nm", "1,2,3"), "--pixel-size-nm 1,2,3 came, two numbers were expected", "--pixel-size-nm 4,4"),
        ((), "how grey values are normalised was not said", "--mean 0 --std 255, or --percentiles 1,99.8"),
    ],
)
def test_flags_that_cannot_be_meant(flags: tuple[str, ...], says: str, fix: str, cli: Cli, tmp_path: Path) -> None:
    save(smp_like(), tmp_path / "other.onnx")
    outcome = cli("adopt", "other.onnx", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert f"error[configuration]: {says}" in outcome.err
    assert f"fix: {fix}" in outcome.err


def test_three_pixel_sizes(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("adopt", "other.onnx", "--mean", "0", "--std", "1", "--pixel-size-nm", "4,5,6")
    assert outcome.code == 2
    assert "--pixel-size-nm 4,5,6 came, two numbers were expected\n  one, or that of y and that of x\n" in outcome.err


def test_lists_by_commas_and_by_repetition() -> None:
    assert split_names(None) == ()
    assert parse_numbers(["1,2", "3"], "--mean", "128") == (1.0, 2.0, 3.0)
    with pytest.raises(ConfigurationError, match=r"^--mean 1,x came, numbers were expected\n"):
        parse_numbers(["1,x"], "--mean", "128")


def test_it_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from unet_deploy.cli.app import run\n"
        "sys.exit(run(['adopt', 'other.onnx', '--mean', '0', '--std', '255', '--threads', '1']))"
    )
    save(monai_like(), tmp_path / "other.onnx")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", cwd=tmp_path, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adopted.onnx").is_file()
