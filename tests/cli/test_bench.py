"""``unet-deploy bench``: what it measures, shows, advises and remembers; and what doctor and plan make of it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import Outcome
from tests.tiny import make_pixels, snapshot, write_image
from tests.unit.test_measured_order import costs_of
from unet_deploy.cli._bench_report import Found, choose_rows, join_command, not_run, show, tell_apart
from unet_deploy.cli.bench import keep_telling, require_any, sort_paths
from unet_deploy.errors import DeviceError, UsageError
from unet_deploy.runtime.advice import Advice
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.kept_costs import count_costs
from unet_deploy.runtime.trials import Trial, rank

Cli = Callable[..., Outcome]

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("openvino", "onnxruntime")),
    reason="the extras 'cpu' and 'openvino' are not both installed",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, where measurements are kept."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    return folder


def table(text: str) -> list[dict[str, str]]:
    """Return the rows of the table."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("engine "))
    end = next(i for i in range(start, len(lines)) if not lines[i] or lines[i].startswith("and "))
    return [dict(zip(lines[start].split(), re.split(r"  +", line), strict=True)) for line in lines[start + 1 : end]]


def rows(text: str) -> dict[str, str]:
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines() if re.match(r"\S.*  ", line))


def found_of(trials: tuple[Trial, ...], artifacts: tuple[Artifact, ...]) -> Found:
    return Found(
        artifacts=artifacts,
        asked=frozenset(artifact.sha256 for artifact in artifacts[:1]),
        is_given=True,
        flags=(),
        path=None,
        rows=rank(trials),
        trials=trials,
        advices=(),
        notes=(),
        keeping="kept",
        volume=None,
        busy=0.0,
    )


def test_what_a_person_reads_and_what_is_remembered(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("bench", tiny_model, "--device", "cpu", "--seconds", "15", "--keep")
    assert outcome.code == 0, outcome.err
    assert outcome.err == "measuring: fp32 on openvino, onnxruntime-cpu (1 of 1)\n"
    shown, found = rows(outcome.out), table(outcome.out)
    assert shown["model"] == f"{tiny_model}: U-Net 2015, depth 2, width 2, fp32"
    assert {"cpu", "memory", "gpu"} <= set(shown)
    assert {row["engine"] for row in found} == {"openvino", "onnxruntime-cpu"}
    times = [float(row["time"].removesuffix("×")) for row in found]
    assert times == sorted(times)
    assert times[0] == 1.0
    assert all(re.fullmatch(r"[\d.]+ MB", row["memory"]) and int(row["tile"]) > 100 for row in found)
    command = f"unet-deploy segment VOLUME.zarr --model {tiny_model} --device cpu"
    assert shown["use"].startswith(command)
    assert re.search(
        r"^ +[\d.]+ Mpx/s, 1 Gpx in .+: (openvino|onnxruntime-cpu), tiles of \d+ × \d+ px", outcome.out, re.M
    )
    assert shown["remembered"].startswith("segment and plan choose by this from now on")
    assert count_costs().count == 2

    planned = cli(
        "plan", write_image(Path("v.zarr"), make_pixels((1, 100, 90))), "--model", tiny_model, "--device", "cpu"
    )
    assert re.search(r"measured here on \d{4}-\d\d-\d\d: \S+ takes [\d.]+ of \S+'s time", planned.out), planned.out
    doctor = rows(cli("doctor").out)
    assert re.fullmatch(r"2 time\(s\) on this machine, the last on [\d-]+; engine and tile .+", doctor["measured"])

    assert cli("bench", "--forget") == Outcome(0, "forgot 2 measurement(s) of this machine\n", "")
    assert cli("bench", "--forget") == Outcome(0, "nothing was remembered of this machine\n", "")
    assert json.loads(cli("bench", "--forget", "--json").out) == {"forgotten": 0}
    assert "nothing of this machine yet" in rows(cli("doctor").out)["measured"]


def test_what_a_program_reads(cli: Cli, tiny_products: dict[str, Path], home: Path) -> None:
    outcome = cli("bench", tiny_products["fp32"], "--seconds", "3", "--json", "--no-keep", "--threads", "1")
    facts = json.loads(outcome.out)
    assert outcome.code == 0
    assert {row["precision"] for row in facts["rows"]} >= {"fp32"}
    use = facts["use"][0]
    assert use["precision"] == "fp32"
    assert use["flags"][:2] == ["--threads", "1"]
    assert use["pixels_per_second"] >= use["pixels_per_second_without"] * 0.94
    reasons = {(entry["precision"], entry["engine"]): entry["reason"] for entry in facts["engines"]}
    assert reasons["fp32", "openvino"] is None
    assert (facts["is_kept"], facts["volume"], len(facts["left_out"])) == (False, None, 1)
    assert facts["machine"]["processor"]["usable"] >= 1
    assert not [path for path in home.rglob("*.json") if "costs" in path.parts]


def test_other_precisions_and_what_is_not_one(cli: Cli, tiny_products: dict[str, Path]) -> None:
    shutil.copy(tiny_products["fp32"], "model.onnx")
    shutil.copy(tiny_products["int8"], "model.int8.onnx")
    Path("model.fp16.onnx").write_bytes(b"nothing")
    outcome = cli("bench", "--engine", "onnxruntime-cpu", "--seconds", "3")
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("model: ./model.onnx\n")
    assert {row["precision"] for row in table(outcome.out)} == {"fp32", "int8"}
    assert re.search(r"^left out +model\.fp16\.onnx: model\.fp16\.onnx is not an ONNX file", outcome.out, re.MULTILINE)
    assert rows(outcome.out)["use"].startswith("unet-deploy segment VOLUME.zarr --engine onnxruntime-cpu")


def test_a_volume_is_tried(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((2, 200, 300)))
    before = snapshot(volume)
    outcome = cli("bench", volume, tiny_model, "--engine", "onnxruntime-cpu", "--seconds", "12", "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)["volume"]
    assert facts["pixels"] == 2 * 200 * 300
    (estimate,) = facts["engines"]
    assert estimate["engine"] == "onnxruntime-cpu"
    assert estimate["seconds"] > 0
    tried = facts["tried"]
    assert (tried["blocks"], tried["empty_blocks"], tried["pixels"]) == (1, 0, 200 * 300)
    assert tried["pixels_per_second"] > 0
    assert tried["engine_pixels_per_second"] > 0
    assert snapshot(volume) == before
    assert {path.name for path in tmp_path.iterdir()} == {"home", "v.zarr"}


def test_a_volume_is_shown(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((2, 200, 300)))
    outcome = cli("bench", tiny_model, volume, "--engine", "openvino", "--seconds", "12", "--no-keep")
    shown = rows(outcome.out)
    assert shown["volume"] == "v.zarr: 0.1 Mpx in 2 blocks"
    assert re.search(r"^ +openvino, fp32: about .+ s, tiles of \d+ × \d+ px, [\d.]+ MB of memory$", outcome.out, re.M)
    assert re.fullmatch(
        r"1 block\(s\), 0\.1 Mpx from Zarr to Zarr: [\d.]+ Mpx/s; openvino alone: [\d.]+ Mpx/s", shown["tried"]
    )
    assert shown["use"].startswith(f"unet-deploy segment {volume} --model {tiny_model} --engine openvino")
    assert shown["remembered"] == "nothing, as asked (--no-keep)"


def test_what_tells_too_little_is_not_remembered(tiny_artifact: Artifact) -> None:
    told = Trial(artifact=tiny_artifact, engine="onnxruntime-cpu", costs=costs_of("onnxruntime-cpu", {104: 1.0}))
    untold = replace(told, left_out=((768, "time"),))
    assert keep_telling((untold, untold), is_wanted=True, busy=0.0) == "too little"
    assert keep_telling((told, untold), is_wanted=None, busy=0.6) == "too busy"
    assert keep_telling((told, untold), is_wanted=False, busy=0.0) == "not asked for"
    assert count_costs().count == 0
    assert keep_telling((told, untold), is_wanted=None, busy=0.4) == "in part"
    assert keep_telling((told, replace(told, costs=None)), is_wanted=True, busy=1.0) == "kept"
    assert count_costs().count == 1


def test_a_home_that_cannot_be_written_to_is_said(tiny_artifact: Artifact, home: Path) -> None:
    shutil.rmtree(home)
    home.write_text("in the way")
    told = Trial(artifact=tiny_artifact, engine="onnxruntime-cpu", costs=costs_of("onnxruntime-cpu", {104: 1.0}))
    assert keep_telling((told,), is_wanted=True, busy=0.0) == "not possible"


def test_arguments_are_sorted() -> None:
    models = [Path("a.onnx"), Path("b.engine"), Path("membrane"), Path("model.pt"), Path("nuclie")]
    assert sort_paths([models[0], Path("v.zarr"), *models[1:]]) == (models, Path("v.zarr"))
    assert sort_paths([]) == ([], None)
    assert sort_paths([Path("volume")]) == ([], Path("volume"))
    with pytest.raises(UsageError, match=r"^2 arguments are no models, at most one volume was expected\n") as caught:
        sort_paths([Path("v.zarr"), Path("a.onnx"), Path("w.tif")])
    assert caught.value.fix == "unet-deploy bench a.onnx v.zarr"


def test_forgetting_is_all_that_is_done(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("bench", tiny_model, "--forget")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"--forget came with {tiny_model}" in outcome.err
    assert "fix: unet-deploy bench --forget" in outcome.err


def test_how_a_volume_is_read_is_part_of_the_command(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((2, 100, 90)))
    flags = ("--level", "0", "--input-range", "0:255", "--engine", "onnxruntime-cpu", "--seconds", "1", "--no-keep")
    outcome = cli("bench", volume, tiny_model, *flags)
    assert outcome.code == 0, outcome.err
    wanted = f"unet-deploy segment {volume} --model {tiny_model} --level 0 --input-range 0:255 --engine onnxruntime-cpu"
    assert rows(outcome.out)["use"].startswith(wanted)


def test_how_a_volume_is_read_is_refused_without_one(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("bench", tiny_model, "--channel", "1", "--axes", "czyx")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error[usage]: --axes czyx --channel 1 came without a volume\n")
    assert "measuring" not in outcome.err


def test_two_models_are_told_apart(tiny_artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """Both were asked for, so both get their command, however slow."""
    one, other = (replace(tiny_artifact, sha256=name, source=name) for name in ("a.onnx", "b.onnx"))
    trials = tuple(
        Trial(artifact=artifact, engine="openvino", costs=costs_of("openvino", {104: seconds}))
        for artifact, seconds in ((one, 0.1), (other, 0.2))
    )
    advices = tuple(
        Advice(
            artifact=artifact,
            engine="openvino",
            tile=(104, 104),
            flags=(),
            seconds_per_pixel=seconds,
            own_seconds_per_pixel=seconds,
            is_foretold=False,
        )
        for artifact, seconds in ((one, 1e-6), (other, 2e-6))
    )
    asked = frozenset({"a.onnx", "b.onnx"})
    show(replace(found_of(trials, (one, other)), advices=advices, asked=asked))
    shown = capsys.readouterr().out
    assert [(row["model"], row["time"]) for row in table(shown)] == [("a.onnx", "1.00×"), ("b.onnx", "2.00×")]
    commands = re.findall(r"^use +unet-deploy segment VOLUME\.zarr --model (\S+)$", shown, re.MULTILINE)
    assert commands == ["a.onnx", "b.onnx"]
    fast = "1.00 Mpx/s, 1 Gpx in 16 min 40 s: openvino, tiles of 104 × 104 px where the volume is large"
    assert f"{fast}\n" in shown
    show(replace(found_of(trials, (one, other)), advices=(replace(advices[0], is_foretold=True),)))
    assert f"{fast}, foretold from smaller ones\n" in capsys.readouterr().out


def test_files_are_named_as_shortly_as_they_can_be(tiny_artifact: Artifact) -> None:
    def file(name: str, precision: Literal["fp32", "int8"]) -> Artifact:
        return replace(
            tiny_artifact, source=name, sha256=name, card=replace(tiny_artifact.card, precision=precision, parity=None)
        )

    assert [*tell_apart([file("a.onnx", "fp32"), file("a.int8.onnx", "int8")]).values()] == ["fp32", "int8"]
    both = [file("x/a.onnx", "fp32"), file("bundled membrane.onnx", "fp32")]
    assert [*tell_apart(both).values()] == ["a.onnx", "membrane"]
    assert [*tell_apart([*both, file("y/a.onnx", "fp32")]).values()] == ["x/a.onnx", "membrane", "y/a.onnx"]


def test_a_long_table_keeps_the_best_of_each_engine(tiny_artifact: Artifact) -> None:
    fast = Trial(
        artifact=tiny_artifact,
        engine="openvino",
        costs=costs_of("openvino", {side: side**2 * 1e-9 for side in range(104, 184, 4)}),
    )
    slow = replace(fast, engine="onnxruntime-cpu", costs=costs_of("onnxruntime-cpu", {104: 1.0, 108: 2.0}))
    every = rank((fast, slow))
    shown = choose_rows(every)
    assert len(shown) == 12
    assert shown[:11] == [*every[:11]]
    assert (shown[11].trial.engine, shown[11].sample.tile_y) == ("onnxruntime-cpu", 104)
    assert choose_rows(every[:5]) == [*every[:5]]


def test_a_command_is_quoted_as_the_shell_reads_it() -> None:
    words = ["segment", "my volume.zarr", "--tile", "572,700"]
    assert join_command(words, "linux") == "segment 'my volume.zarr' --tile 572,700"
    words[1] = r"C:\my volumes\v.zarr"
    assert join_command(words, "win32") == r'segment "C:\my volumes\v.zarr" --tile "572,700"'
    assert join_command(["segment", r"C:\v.zarr"], "win32") == r"segment C:\v.zarr"


def test_what_was_not_run_is_said_with_the_file(tiny_artifact: Artifact) -> None:
    small = replace(tiny_artifact, sha256="0", source="m.int8.onnx", card=replace(tiny_artifact.card, precision="int8"))
    ran = Trial(artifact=tiny_artifact, engine="openvino", costs=costs_of("openvino", {104: 1.0}))
    absent = Trial(artifact=tiny_artifact, engine="tensorrt", reason="not installed", fix="pip install it")
    late = replace(ran, artifact=small, costs=None, reason="there was no time")
    found = found_of((ran, absent, late, replace(absent, artifact=small)), (tiny_artifact, small))
    assert not_run(found) == [
        ("not run", "tensorrt: not installed (pip install it)"),
        ("not run", "openvino int8: there was no time"),
    ]


def test_where_nothing_runs_all_is_said(tiny_artifact: Artifact) -> None:
    trials = (
        Trial(artifact=tiny_artifact, engine="openvino", reason="not installed", fix="pip install it"),
        Trial(artifact=tiny_artifact, engine="onnxruntime-cpu", reason="it broke", fix="mend it"),
    )
    with pytest.raises(
        DeviceError,
        match=r"^nothing could be measured: no engine ran the model here\n  openvino, fp32: not installed\n"
        r"  onnxruntime-cpu, fp32: it broke\n",
    ) as caught:
        require_any(trials)
    assert caught.value.fix == "mend it"


def test_what_is_wrong_is_told_before_anything_is_measured(cli: Cli, tiny_model: Path) -> None:
    for arguments, code in (
        (("no.zarr",), "volume-not-found"),
        (("--engine", "openvno"), "unknown-name"),
        (("--device", "gpu"), "unknown-name"),
        (("no.onnx",), "model-not-found"),
        (("membrnae",), "model-not-found"),
    ):
        outcome = cli("bench", tiny_model, *arguments)
        assert outcome.out == ""
        assert f"error[{code}]" in outcome.err
        assert "measuring" not in outcome.err
    assert [path.name for path in Path().iterdir()] == ["home"]
