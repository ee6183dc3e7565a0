"""What each verb prints and writes when all is well; stdout is the result, stderr the rest."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.conftest import Outcome
from tests.tiny import (
    VOXEL_NM,
    edit_card,
    make_pixels,
    read_arrays,
    read_provenance,
    snapshot,
    write_array,
    write_checkpoint,
    write_huge,
    write_image,
)
from unet_deploy import __version__
from unet_deploy.cli import app

Cli = Callable[..., Outcome]
VERBS = ("train", "export", "segment", "plan", "evaluate", "inspect", "check", "bench", "doctor", "demo")

LOADED = """
import contextlib, io, json, sys
from unet_deploy.cli.app import run
with contextlib.redirect_stdout(io.StringIO()) as shown:
    assert run(sys.argv[1:]) == 0
assert "Usage: unet-deploy" in shown.getvalue()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write_image(tmp_path / "v.ome.zarr", make_pixels((2, 100, 90)))


def rows(text: str) -> dict[str, str]:
    """Return what a verb shows in two columns; of rows with one name, the last."""
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines() if "  " in line)


# ---- the program


def test_version(cli: Cli) -> None:
    assert cli("--version") == Outcome(0, f"unet-deploy {__version__}\n", "")


def test_help_names_every_verb(cli: Cli) -> None:
    outcome = cli("--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert [verb for verb in VERBS if not re.search(rf"^ *{verb} ", outcome.out, re.MULTILINE)] == []


def test_help_says_in_full_what_each_verb_does(cli: Cli) -> None:
    out = cli("--help").out
    shown = rows(textwrap.dedent(out.partition("Commands:\n")[2]))
    assert shown == app.VERBS


def test_a_verb_that_is_none_has_a_neighbour(cli: Cli) -> None:
    outcome = cli("segmnt")
    assert outcome.code == 2
    assert "No such command 'segmnt'. Did you mean 'segment'?" in outcome.err


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str, cli: Cli) -> None:
    outcome = cli(verb, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: unet-deploy {verb} ")


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["demo", "--help"], ["train", "--help"]])
def test_help_is_quick(arguments: list[str], tmp_path: Path) -> None:
    """Start-up is what is imported: typer and its own needs, nothing that computes."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, cwd=tmp_path, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    heavy = {"numpy", "torch", "onnx", "onnxruntime", "google", "zarr", "numcodecs", "dask", "distributed", "rich"}
    assert "typer" in loaded
    assert loaded & heavy == set()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("arguments", [("inspect", "tiny.onnx"), ("segment", "--help"), ("segment", "no.zarr")])
def test_any_encoding_of_the_output_will_do(
    arguments: tuple[str, ...], encoding: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Python on Windows writes to a file or a pipe in the system's code page, which lacks most signs."""
    shutil.copy(tiny_model, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", *arguments],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        check=False,
        timeout=60,
    )
    assert b"UnicodeEncodeError" not in done.stderr
    assert done.returncode == (3 if "no.zarr" in arguments else 0)


# ---- export


def test_export(cli: Cli, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt")
    outcome = cli("export", "model.pt")
    assert outcome.code == 0
    shown = rows(outcome.out)
    size = (tmp_path / "model.onnx").stat().st_size
    assert shown["output"].startswith(f"model.onnx, {size / 1000:.1f} kB, sha256 ")
    assert shown["network"].startswith("tiny: U-Net 2015, depth 2, width 2, 1 channel(s), 2 classes, ")
    assert re.fullmatch(r"\d+ nodes, opset 18, fp32, any legal size", shown["graph"])
    assert outcome.out.count("parity") >= 3
    difference = re.search(r"max difference (\S+) \(at most (\S+)\), mean \S+, labels equal", shown["parity"])
    assert difference is not None
    assert float(difference[1]) <= float(difference[2])
    assert shown["checked"].startswith("against torch through onnxruntime-cpu ")
    assert shown["next"] == "unet-deploy segment VOLUME.zarr --model model.onnx"
    assert "export: comparing with torch" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt"]


def test_export_again(cli: Cli, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt")
    assert cli("export", "model.pt", "-o", "a.onnx").code == 0
    refused = cli("export", "model.pt", "-o", "a.onnx")
    assert (refused.code, refused.out) == (3, "")
    assert "error[output-exists]: a.onnx exists" in refused.err
    before = (tmp_path / "a.onnx").read_bytes()
    outcome = cli("export", "model.pt", "-o", "a.onnx", "--overwrite", "--json")
    facts = json.loads(outcome.out)
    assert outcome.code == 0
    assert (tmp_path / "a.onnx").read_bytes() == before  # nothing in the file depends on when or where
    assert (facts["output"], facts["bytes"]) == ("a.onnx", len(before))
    assert 0 <= facts["max_difference"] <= min(row["limit"] for row in facts["parity"])
    assert {len(row["shape"]) for row in facts["parity"]} == {4}
    assert facts["nodes"] > 10
    assert facts["weights"] > 100
    assert facts["engine"]["engine"] == "onnxruntime-cpu"


def test_export_of_several_precisions(cli: Cli, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt")
    write_image(tmp_path / "v.zarr", make_pixels((2, 60, 70)))
    every = ("--precision", "fp32", "--precision", "int8", "--precision", "fp16", "--precision", "int8")
    outcome = cli("export", "model.pt", *every, "--calibrate", "v.zarr")
    assert outcome.code == 0, outcome.err
    blocks = [rows(block) for block in outcome.out.split("\n\n")]
    outputs = ["model.onnx", "model.int8.onnx", "model.fp16.onnx"]
    assert [block["output"].split(",")[0] for block in blocks] == outputs
    assert [block["graph"].split(", ")[2] for block in blocks] == ["fp32", "int8", "fp16"]
    for block in blocks[1:]:
        shown = re.search(r"max difference (\S+) \(at most (\S+)\), mean (\S+), labels equal (\S+)%$", block["parity"])
        assert shown is not None
        assert float(shown[3]) <= float(shown[1]) <= float(shown[2])
        assert float(shown[4]) >= 99
        assert block["checked"].startswith("against fp32 on v.zarr, 2 tile(s) of 424 x 424 px through onnxruntime-cpu ")
    assert "export: calibrating int8 on 1 tiles" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*outputs, "model.pt", "v.zarr"])
    seen = rows(cli("inspect", "model.int8.onnx").out)
    assert seen["precision"] == "int8"
    assert seen["parity"].startswith("labels equal to fp32 99.")
    assert seen["parent"] == f"fp32, sha256 {json.loads(cli('inspect', 'model.onnx', '--json').out)['sha256']}"
    assert "int8" in rows(cli("segment", "v.zarr", "--model", "model.int8.onnx", "-o", "s.zarr").out)["engine"]
    assert cli("plan", "v.zarr", "--model", "model.fp16.onnx").code == 0


def test_export_of_one_precision_takes_the_name_given(cli: Cli, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt")
    outcome = cli("export", "model.pt", "--precision", "fp16", "-o", "small.onnx", "--json")
    facts = json.loads(outcome.out)
    assert (facts["output"], facts["precision"]) == ("small.onnx", "fp16")
    assert facts["compared_with"].startswith("fp32 on the procedural sample")
    assert {row["labels_equal"] >= 0.999 for row in facts["parity"]} == {True}
    both = cli("export", "model.pt", "--precision", "fp32", "--precision", "fp16", "-o", "a.onnx", "--json")
    products = json.loads(both.out)["products"]
    assert [product["output"] for product in products] == ["a.onnx", "a.fp16.onnx"]
    assert products[1]["parent_sha256"] == products[0]["sha256"] == facts["parent_sha256"]
    assert products[0]["parent_sha256"] is None


# ---- plan


def test_plan_writes_nothing(cli: Cli, volume: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    outcome = cli("plan", volume, "--model", tiny_model)
    assert outcome.code == 0
    assert snapshot(tmp_path) == before
    shown = rows(outcome.out)
    assert shown["volume"].endswith("zyx 2 × 100 × 90 uint8")
    assert shown["model"] == f"tiny ({tiny_model})"
    assert "TFLOP" in shown["work"]
    assert "one tile took" in shown["time"]
    assert shown["output"].startswith(str(tmp_path / "v_segmentation.ome.zarr"))
    assert {"tiles", "blocks", "chunks out", "read", "memory", "disk"} <= set(shown)


def test_plan_for_machines(cli: Cli, volume: Path, tiny_model: Path) -> None:
    outcome = cli("plan", volume, "--model", tiny_model, "--tile", "76,60", "--batch", "3", "--no-probe", "--json")
    facts = json.loads(outcome.out)
    assert outcome.code == 0
    assert (facts["tile"], facts["core"], facts["batch"]) == ([76, 60], [36, 20], 3)
    assert (facts["pixels"], facts["context"], facts["divisor"]) == (18_000, 20, 4)
    assert (facts["seconds"], facts["seconds_per_tile"], facts["engine"]) == (None, None, None)
    wanted = {"tiles", "blocks", "block", "bytes_read", "peak_memory_bytes", "disk_bytes", "disk_free_bytes", "output"}
    assert wanted <= set(facts)
    assert facts["tiles"] >= 2 * 3 * 5


def test_plan_estimates_the_time(cli: Cli, volume: Path, tiny_model: Path) -> None:
    facts = json.loads(cli("plan", volume, "--model", tiny_model, "--json").out)
    assert facts["seconds"] == pytest.approx(facts["seconds_per_tile"] * facts["tiles"])
    assert facts["seconds"] > 0


def test_averaging_costs_eight_times(cli: Cli, volume: Path, tiny_model: Path) -> None:
    plain = json.loads(cli("plan", volume, "--model", tiny_model, "--no-probe", "--json").out)
    assert (plain["tta"], plain["passes"]) == (False, 1)
    facts = json.loads(cli("plan", volume, "--model", tiny_model, "--tta", "--json").out)
    assert (facts["tta"], facts["passes"], facts["flops"]) == (True, 8, 8 * plain["flops"])
    assert facts["seconds"] == pytest.approx(8 * facts["seconds_per_tile"] * facts["tiles"])
    same = {"tiles", "blocks", "bytes_read", "flops_ratio", "peak_memory_bytes"}
    assert {key: facts[key] for key in same} == {key: plain[key] for key in same}
    shown = rows(cli("plan", volume, "--model", tiny_model, "--tta").out)
    assert shown["tta"] == "each tile 8 times, turned and mirrored, and the mean of the results"
    assert shown["time"].endswith(" s just now, 8 times")
    done = rows(cli("segment", volume, "--model", tiny_model, "--tta").out)
    assert done["tta"] == "each the mean of 8 turned and mirrored forms"


def test_the_plan_is_what_is_done(cli: Cli, volume: Path, tiny_model: Path) -> None:
    flags = ("--model", tiny_model, "--tile", "60", "--json")
    planned = json.loads(cli("plan", volume, "--no-probe", *flags).out)
    done = json.loads(cli("segment", volume, *flags).out)
    assert done["plan"] == {key: planned[key] for key in done["plan"]}
    assert done["output"] == planned["output"]


def test_the_plan_of_any_volume_takes_no_time(tiny_model: Path, tmp_path: Path) -> None:
    """As large as metadata may say: its figures are computed, not counted."""
    write_huge(tmp_path / "huge.zarr", (2**40, 2**40))
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", "plan", "huge.zarr", "--model", tiny_model, "--no-probe", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pixels"] == 2**80


# ---- segment


def test_segment(cli: Cli, volume: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = snapshot(volume)
    outcome = cli("segment", volume, "--model", tiny_model, "--tile", "60", "--device", "cpu")
    assert outcome.code == 0
    shown = rows(outcome.out)
    output = tmp_path / "v_segmentation.ome.zarr"
    assert shown["output"] == str(output)
    assert shown["labels"] == str(output / "labels" / "segmentation")
    assert shown["pixels"] == "18,000 (1 × 2 × 100 × 90 t z y x)"
    assert "of 60 × 60 px" in shown["tiles"]
    assert re.fullmatch(r"\S+ [\d.]+ on cpu, fp32", shown["engine"])
    assert shown["chosen"].startswith("first of those that work (")
    assert re.search(r"share +[\d.]+% inside\nshare +[\d.]+% membrane\n", outcome.out)
    assert "segment: 2/2" in outcome.err
    assert snapshot(volume) == before
    arrays = read_arrays(output)
    labels, probabilities = arrays["labels/segmentation/0"], arrays["0"]
    assert (labels.shape, probabilities.shape) == ((2, 100, 90), (2, 2, 100, 90))
    assert 0 < labels.mean() < 1
    certain = probabilities[1].astype(int) - probabilities[0]
    assert (labels[certain > 1] == 1).all()
    assert (labels[certain < -1] == 0).all()
    assert read_provenance(output)["status"] == "complete"
    again = json.loads(cli("inspect", output, "--json").out)
    assert {axis: again["scale"][axis]["value"] for axis in "zyx"} == dict(zip("zyx", VOXEL_NM, strict=True))


def test_the_volume_may_be_the_current_folder(
    cli: Cli, volume: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(volume)
    outcome = cli("segment", ".", "--model", tiny_model)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.ome.zarr", "v_segmentation.ome.zarr"]


def test_segment_for_machines(cli: Cli, volume: Path, tiny_model: Path) -> None:
    flags = ("--model", tiny_model, "--device", "cpu", "--write", "labels")
    outcome = cli("segment", volume, *flags, "--json", "-o", "out.zarr")
    facts = json.loads(outcome.out)
    assert outcome.code == 0
    assert facts["output"] == "out.zarr"
    assert sum(facts["class_fractions"].values()) == pytest.approx(1)
    assert facts["pixels"] == 18_000
    assert facts["seconds"]["total"] >= facts["seconds"]["blocks"] > 0
    assert facts["engine"]["device"] == "cpu"
    assert facts["out_of_memory"] == []
    assert list(read_arrays(Path("out.zarr"))) == ["labels/segmentation/0"]
    said = {item["engine"]: item["verdict"] for item in facts["engine"]["choice"]}
    assert said[facts["engine"]["engine"]].startswith("first of those that work (")
    assert read_provenance(Path("out.zarr"))["engine"] == facts["engine"]


def test_the_engine_that_is_named_is_used(cli: Cli, volume: Path, tiny_model: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("the extra 'openvino' is not installed")
    flags = ("--model", tiny_model, "--engine", "openvino")
    outcome = cli("segment", volume, *flags, "-o", "out.zarr")
    assert outcome.code == 0, outcome.err
    shown = rows(outcome.out)
    assert re.fullmatch(r"openvino [\d.]+ on cpu, fp32", shown["engine"])
    assert shown["chosen"] == "asked for"
    assert "not used" not in shown
    assert read_provenance(Path("out.zarr"))["engine"]["choice"] == [{"engine": "openvino", "verdict": "asked for"}]
    planned = cli("plan", volume, *flags)
    assert rows(planned.out)["engine"] == shown["engine"]


def test_an_engine_that_is_not_installed_is_named_with_the_command(
    cli: Cli, volume: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    before = sorted(tmp_path.iterdir())
    for verb in ("segment", "plan"):
        outcome = cli(verb, volume, "--model", tiny_model, "--engine", "openvino")
        assert outcome.code == 5
        assert "error[missing-dependency]: the engine openvino needs the package 'openvino'" in outcome.err
        assert "fix: pip install 'unet-deploy[openvino]'" in outcome.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_store_of_probabilities_alone(cli: Cli, volume: Path, tiny_model: Path) -> None:
    outcome = cli("segment", volume, "--model", tiny_model, "--write", "probabilities", "-o", "out.zarr")
    assert outcome.code == 0
    assert rows(outcome.out)["labels"] == "not written"
    assert list(read_arrays(Path("out.zarr"))) == ["0"]


def test_overwrite_replaces_an_earlier_segmentation(cli: Cli, volume: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert cli("segment", volume, "--model", tiny_model, "--write", "labels").code == 0
    refused = cli("segment", volume, "--model", tiny_model)
    assert refused.code == 3
    assert "replace it with --overwrite" in refused.err
    assert cli("segment", volume, "--model", tiny_model, "--overwrite").code == 0
    assert len(read_arrays(tmp_path / "v_segmentation.ome.zarr")) == 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--tile", "44"],
        ["--tile", "60,252"],
        ["--batch", "4", "--tile", "60"],
        ["--threads", "1"],
        ["--max-memory", "300MB"],
    ],
)
def test_no_flag_of_speed_changes_the_result(flags: list[str], cli: Cli, volume: Path, tiny_model: Path) -> None:
    assert cli("segment", volume, "--model", tiny_model, "-o", "a.zarr").code == 0
    assert cli("segment", volume, "--model", tiny_model, "-o", "b.zarr", *flags).code == 0
    a, b = (read_arrays(Path(name)) for name in ("a.zarr", "b.zarr"))
    assert (a["labels/segmentation/0"] != b["labels/segmentation/0"]).mean() <= 1e-4  # a tie may fall either way
    assert np.abs(a["0"].astype(int) - b["0"]).max() <= 1


@pytest.mark.parametrize("channel", ["1", "GFP"])
def test_a_channel_by_number_or_name(channel: str, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pixels = np.stack([make_pixels((2, 50, 60), seed=seed) for seed in range(3)])
    write_image(tmp_path / "c.zarr", pixels, axes="czyx", channel_names=("DAPI", "GFP", "RFP"))
    write_image(tmp_path / "one.zarr", pixels[1])
    assert cli("segment", "c.zarr", "--model", tiny_model, "--channel", channel).code == 0
    assert cli("segment", "one.zarr", "--model", tiny_model).code == 0
    came, expected = (read_arrays(tmp_path / f"{name}_segmentation.ome.zarr") for name in ("c", "one"))
    assert came.keys() == expected.keys()
    assert all(np.array_equal(came[name], expected[name]) for name in came)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_output_has_the_version_of_the_input(version: Any, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((1, 40, 40)), version=version)
    assert cli("segment", "v.zarr", "--model", tiny_model).code == 0
    facts = json.loads(cli("inspect", "v_segmentation.ome.zarr", "--json").out)
    assert (facts["ome_version"], facts["zarr_format"]) == (version, 2 if version == "0.4" else 3)
    assert facts["channel_names"] == ["inside", "membrane"]


def test_a_bare_array_with_its_axes_said(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_array(tmp_path / "bare.zarr", make_pixels((1, 2, 40, 40)))
    outcome = cli("segment", "bare.zarr", "--model", tiny_model, "--axes", "czyx", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["output"] == "bare_segmentation.ome.zarr"


# ---- which model


def test_the_model_is_looked_for_in_order(
    cli: Cli, volume: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_of(*flags: str | Path) -> tuple[str, str]:
        outcome = cli("plan", volume, "--no-probe", *flags)
        assert outcome.code == 0, outcome.err
        return rows(outcome.out)["model"], outcome.err

    def named(name: str) -> Path:
        return edit_card(tiny_model, tmp_path / f"{name}.onnx", lambda card: card.update(name=name))

    name, said = model_of()
    assert name.endswith("(bundled membrane.onnx)")
    assert "model: the bundled " in said
    assert "trained on: " in said

    named("local").rename("model.onnx")
    name, said = model_of()
    assert name == "local (model.onnx)"
    assert said == "model: ./model.onnx\n"

    of_environment = named("variable")
    monkeypatch.setenv("UNET_DEPLOY_MODEL", str(of_environment))
    name, said = model_of()
    assert name == f"variable ({of_environment})"
    assert said == f"model: {of_environment} (from $UNET_DEPLOY_MODEL)\n"

    name, said = model_of("--model", named("flag"))
    assert name.startswith("flag (")
    assert said == ""


def test_a_model_named_in_the_environment_must_be_there(
    cli: Cli, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never another model in silence."""
    monkeypatch.setenv("UNET_DEPLOY_MODEL", "gone.onnx")
    outcome = cli("segment", volume)
    assert outcome.code == 4
    assert "error[model-not-found]: no model file at gone.onnx" in outcome.err


# ---- inspect


def test_inspect_an_artifact(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("inspect", tiny_model)
    shown = rows(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert shown["network"] == "U-Net 2015, depth 2, width 2, 1 channel(s), 2 classes"
    assert shown["geometry"] == "context 20 px, tiles 4·k from 44, divisor 4"
    assert shown["precision"] == "fp32"
    assert shown["input"] == "uint8 in 0..255, channels: grey"
    assert shown["normalised"] == "(v − 128) / 40, from made up"
    assert shown["class"] == "1 membrane (#ffffff)"
    assert shown["scores"] == "dice 0.5 on 7"
    assert shown["licence"] == "CC0"
    facts = json.loads(cli("inspect", tiny_model, "--json").out)
    assert facts["sha256"] == shown["sha256"]
    assert facts["network"]["depth"] == 2
    assert facts["normalisation"]["mean"] == [128.0]
    assert "test_tensor" not in facts  # numbers for a machine to replay, not to read


def test_inspect_a_checkpoint(cli: Cli, tiny_checkpoint: Path) -> None:
    outcome = cli("inspect", tiny_checkpoint)
    shown = rows(outcome.out)
    assert outcome.code == 0
    assert shown["checkpoint"] == str(tiny_checkpoint)
    assert shown["name"] == "tiny"
    assert json.loads(cli("inspect", tiny_checkpoint, "--json").out)["graph_sha256"] is None


def test_inspect_a_volume(cli: Cli, tmp_path: Path) -> None:
    write_image(tmp_path / "c.zarr", make_pixels((2, 3, 100, 90)), axes="czyx", channel_names=("DAPI", "GFP"))
    outcome = cli("inspect", "c.zarr")
    shown = rows(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert shown["format"] == "OME-Zarr 0.5, Zarr v3"
    assert shown["axes"] == "c 2, z 3, y 100, x 90"
    assert (shown["dtype"], shown["chunks"], shown["shards"]) == ("uint8", "1 × 1 × 64 × 64", "none")
    assert "y 4 nanometer" in shown["scale"]
    assert shown["channels"] == "DAPI, GFP"
    facts = json.loads(cli("inspect", "c.zarr", "--json").out)
    assert (facts["axes"], facts["shape"], facts["channel_names"]) == ("czyx", [2, 3, 100, 90], ["DAPI", "GFP"])


def test_inspect_a_bare_array(cli: Cli, tmp_path: Path) -> None:
    write_array(tmp_path / "bare.zarr", np.zeros((3, 20, 30), np.float32))
    shown = rows(cli("inspect", "bare.zarr").out)
    assert shown["format"] == "Zarr v3"
    assert shown["scale"] == "unknown"


# ---- demo


def test_demo(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("demo", "--size", "128", "--planes", "1")
    assert outcome.code == 0
    folder = tmp_path / "unet-deploy-demo"
    assert sorted(path.name for path in folder.iterdir()) == ["overlay.png", "segmentation.ome.zarr", "volume.ome.zarr"]
    picture = (folder / "overlay.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5_000
    shown = rows(outcome.out)
    assert shown["look"] == str(Path("unet-deploy-demo", "overlay.png"))
    assert re.match(r"\d+\.\d% of pixels differ", shown["truth"])
    labels = zarr.open_array(folder / "segmentation.ome.zarr", path="labels/segmentation/0", mode="r")[...]
    assert 0.05 < np.mean(labels) < 0.6  # membranes, neither nothing nor everything

    before = snapshot(tmp_path)
    refused = cli("demo", "--size", "128", "--planes", "1")
    assert (refused.code, refused.out) == (3, "")
    assert "error[output-exists]" in refused.err
    assert snapshot(tmp_path) == before

    assert cli("demo", "--size", "128", "--planes", "1", "--seed", "1", "--overwrite").code == 0
    assert (folder / "overlay.png").read_bytes() != picture


# ---- the whole path


def test_train_export_segment(cli: Cli, tmp_path: Path) -> None:
    """What a user does, with the commands that each step says are next."""
    io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        label = np.kron(rng.random((8, 10)) < 0.4, np.ones((8, 8))).astype(np.uint8)
        image = (40 + 120 * label + rng.normal(0, 8, label.shape)).astype(np.uint8)
        io.imsave(tmp_path / "images" / f"{index}.png", image, check_contrast=False)
        io.imsave(tmp_path / "labels" / f"{index}.png", 255 * label, check_contrast=False)
    write_image(tmp_path / "v.zarr", np.stack([image, image]))

    trained = cli(
        *("train", "images", "labels", "--class", "dark=0", "--class", "bright=255", "--output", "discs.pt"),
        *("--depth", "1", "--width", "4", "--tile", "60", "--steps", "60", "--learning-rate", "0.01"),
    )
    assert trained.code == 0, trained.err
    assert trained.out.startswith("wrote discs.pt: ")
    assert next_command(trained.out) == ["export", "discs.pt"]

    exported = cli(*next_command(trained.out))
    assert exported.code == 0, exported.err
    *command, volume, flag, model = next_command(exported.out)
    assert (command, volume, flag, model) == (["segment"], "VOLUME.zarr", "--model", "model.onnx")

    segmented = cli("segment", "v.zarr", flag, model, "--json")
    assert segmented.code == 0, segmented.err
    assert set(json.loads(segmented.out)["class_fractions"]) == {"dark", "bright"}
    labels = read_arrays(tmp_path / "v_segmentation.ome.zarr")["labels/segmentation/0"]
    assert (labels[0] != label).mean() < 0.1
    assert np.array_equal(labels[0], labels[1])
    assert json.loads(cli("inspect", "model.onnx", "--json").out)["training"]["steps"] == 60


NUCLEI = """
preset = "nuclei"
[data]
images = "images"
labels = "labels"
validation = ["2"]
[training]
depth = 1
base_width = 2
tile_side = 60
steps = 6
validation_every_steps = 3
"""


def test_train_from_a_recipe_in_two_parts(cli: Cli, tmp_path: Path) -> None:
    """Objects by number, a recipe on a preset, a run that ends early and goes on."""
    io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")
    rng = np.random.default_rng(0)
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "labels").mkdir()
    for index in range(3):
        cells = np.arange(1, 13).reshape(3, 4) * (rng.random((3, 4)) < 0.7)
        objects = np.kron(cells, np.ones((14, 14))).astype(np.uint16)
        image = (40 + 120 * (objects > 0) + rng.normal(0, 8, objects.shape)).astype(np.uint8)
        io.imsave(tmp_path / "set" / "images" / f"{index}.png", image, check_contrast=False)
        io.imsave(tmp_path / "set" / "labels" / f"{index}.png", objects, check_contrast=False)
    (tmp_path / "set" / "recipe.toml").write_text(NUCLEI)

    command = ("train", "--recipe", "set/recipe.toml", "-o", "cells.pt", "--set", "training.dropout=0.1")
    begun = cli(*command, "--max-minutes", "1e-9")
    assert begun.code == 0, begun.err
    assert begun.out.startswith("wrote cells.pt: 1 of 1 steps were best, ")
    assert re.search(r"^validation: .*seg 0\.\d{4}.* \(best by seg\)$", begun.out, re.MULTILINE)
    assert "training on 2 images of uint8: background " in begun.err
    assert ", nucleus " in begun.err
    assert begun.err.splitlines()[1] == "validating on 2"

    refused = cli(*command)
    assert (refused.code, refused.out) == (3, "")
    assert "error[output-exists]: cells.pt and cells.run exist already" in refused.err

    ended = cli("train", "--resume", "-o", "cells.pt")
    assert ended.code == 0, ended.err
    assert " of 6 steps were best, " in ended.out
    assert "step 6/6" in ended.err
    assert "step 1/6" not in ended.err
    page = Path("cells.run", "report.html").read_text(encoding="utf-8")
    assert f"report: {Path('cells.run', 'report.html')}" in ended.out
    assert "finished" in page
    training = json.loads(cli("inspect", "cells.pt", "--json").out)["training"]
    assert training["recipe"]["dropout"] == 0.1
    assert training["recipe"]["augmentation"]["zoom_log_std"] == 0.15
    assert len(Path("cells.run", "history.csv").read_text().splitlines()) == 7


def next_command(text: str) -> list[str]:
    found = re.search(r"^next:? +unet-deploy (.+)$", text, re.MULTILINE)
    assert found is not None, text
    return found[1].split()


def test_everything_stays_where_it_was_put(cli: Cli, volume: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A store may be moved: nothing in it points outside."""
    assert cli("segment", volume, "--model", tiny_model, "-o", "out.zarr").code == 0
    (tmp_path / "elsewhere").mkdir()
    shutil.move("out.zarr", tmp_path / "elsewhere" / "moved.zarr")
    outcome = cli("inspect", tmp_path / "elsewhere" / "moved.zarr" / "labels" / "segmentation")
    assert outcome.code == 0
    assert rows(outcome.out)["axes"] == "z 2, y 100, x 90"
