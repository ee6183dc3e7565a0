"""``unet-deploy bench``: what it measures, shows, advises and remembers; and what doctor and plan make of it."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import Outcome
from tests.faults.failing_files import failing
from tests.tiny import make_pixels, snapshot, write_image
from tests.unit.test_measured_order import costs_of
from unet_deploy.cli._bench_report import Found, choose_rows, join_command, not_run, show, tell_apart, to_object
from unet_deploy.cli.app import run
from unet_deploy.cli.bench import keep_telling, require_any, sort_paths
from unet_deploy.errors import DeviceError, UsageError
from unet_deploy.runtime.advice import Advice
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.kept_costs import count_costs, keep_costs
from unet_deploy.runtime.trials import Trial, rank, run_trials

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


def advice_of(artifact: Artifact, seconds: float) -> Advice:
    return Advice(
        artifact=artifact,
        engine="openvino",
        tile=(104, 104),
        flags=(),
        seconds_per_pixel=seconds,
        own_seconds_per_pixel=seconds,
        is_foretold=False,
    )


@dataclass(frozen=True)
class Benched:
    """What a measurement left: its outcome, and the folder with the model, the volume and a home."""

    outcome: Outcome
    folder: Path
    before: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"


def bench_in(folder: Path, *arguments: str, seconds: Sequence[float], is_enough: Callable[[str], bool]) -> Benched:
    """Run it in a folder with a home; again for longer if it was not enough, as on a machine that is busy."""
    (folder / "home").mkdir()
    before = snapshot(folder)
    log = logging.getLogger("unet_deploy")
    settings = log.level, log.propagate, log.handlers[:]
    out, err, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("UNET_DEPLOY_MODEL", raising=False)
        for name in ("HOME", "USERPROFILE"):
            patch.setenv(name, str(folder / "home"))
        for limit in seconds:
            out, err = StringIO(), StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = run(["bench", *arguments, "--seconds", str(limit)])
            if code or is_enough(out.getvalue()):
                break
    log.level, log.propagate, log.handlers[:] = settings
    return Benched(Outcome(code, out.getvalue(), err.getvalue()), folder, before)


@pytest.fixture(scope="module")
def shown(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """What a person sees of a model and a volume on all engines, and what is remembered; not to be changed."""
    folder = tmp_path_factory.mktemp("shown")
    shutil.copy(tiny_model, folder / "m.onnx")
    (folder / "m.fp16.onnx").write_bytes(b"nothing")
    write_image(folder / "v.zarr", make_pixels((2, 200, 300)))
    reading = ("--level", "0", "--input-range", "0:255")
    return bench_in(
        folder,
        *("m.onnx", "v.zarr", *reading, "--device", "cpu", "--keep"),
        seconds=(4, 10, 40),
        is_enough=lambda out: "1 block(s)" in out,
    )


@pytest.fixture(scope="module")
def told(tiny_products: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """What a program is told of the current folder's model, of the precisions beside it and of a volume."""
    folder = tmp_path_factory.mktemp("told")
    shutil.copy(tiny_products["fp32"], folder / "model.onnx")
    shutil.copy(tiny_products["int8"], folder / "model.int8.onnx")
    (folder / "model.fp16.onnx").write_bytes(b"nothing")
    write_image(folder / "v.zarr", make_pixels((2, 200, 300)))
    return bench_in(
        folder,
        *("v.zarr", "--engine", "onnxruntime-cpu", "--threads", "1", "--json", "--no-keep"),
        seconds=(2, 6, 20),
        is_enough=lambda out: "there was no time" not in out and '"tried": null' not in out,
    )


def test_what_a_person_reads(shown: Benched) -> None:
    outcome = shown.outcome
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("measuring: fp32 on openvino, onnxruntime-cpu (1 of 1)\n")
    said, found = rows(outcome.out), table(outcome.out)
    assert said["model"] == "m.onnx: U-Net 2015, depth 2, width 2, fp32"
    assert {"cpu", "memory", "gpu"} <= set(said)
    assert {row["engine"] for row in found} == {"openvino", "onnxruntime-cpu"}
    times = [float(row["time"].removesuffix("×")) for row in found]
    assert times == sorted(times)
    assert times[0] == 1.0
    assert all(re.fullmatch(r"[\d.]+ MB", row["memory"]) and int(row["tile"]) > 100 for row in found)
    assert re.search(
        r"^ +[\d.]+ Mpx/s, 1 Gpx in .+: (openvino|onnxruntime-cpu), tiles of \d+ × \d+ px", outcome.out, re.M
    )
    assert re.search(r"^left out +m\.fp16\.onnx: m\.fp16\.onnx is not an ONNX file", outcome.out, re.M)


def test_how_a_volume_is_read_is_part_of_the_command(shown: Benched) -> None:
    wanted = "unet-deploy segment v.zarr --model m.onnx --level 0 --input-range 0:255 --device cpu"
    assert rows(shown.outcome.out)["use"].startswith(wanted)


def test_a_volume_is_shown(shown: Benched) -> None:
    said = rows(shown.outcome.out)
    assert said["volume"] == "v.zarr: 0.1 Mpx in 2 blocks"
    for engine in ("openvino", "onnxruntime-cpu"):
        estimate = rf"^ +{engine}, fp32: about .+ s, tiles of \d+ × \d+ px, [\d.]+ MB of memory$"
        assert re.search(estimate, shown.outcome.out, re.MULTILINE)
    assert re.fullmatch(
        r"1 block\(s\), 0\.1 Mpx from Zarr to Zarr: [\d.]+ Mpx/s; (openvino|onnxruntime-cpu) alone: [\d.]+ Mpx/s",
        said["tried"],
    )


def test_what_is_said_to_be_remembered_is(shown: Benched, home: Path) -> None:
    """On a machine that is busy there is time for small tiles only, which are not."""
    shutil.copytree(shown.home, home, dirs_exist_ok=True)
    said = {2: "segment and plan choose by this from now on", 1: "what ran tiles large enough", 0: "nothing: there was"}
    assert rows(shown.outcome.out)["remembered"].startswith(said[count_costs().count])


def test_what_is_remembered_is_chosen_by(cli: Cli, tiny_model: Path, tiny_artifact: Artifact) -> None:
    trials = run_trials([tiny_artifact], device="cpu", cores=(16, 64), seconds=60)
    trials = tuple(trial for trial in trials if trial.costs is not None)
    assert keep_telling(trials, is_wanted=True, busy=0.0) == "kept"
    assert count_costs().count == len(trials) == 2

    planned = cli(
        "plan", write_image(Path("v.zarr"), make_pixels((1, 100, 90))), "--model", tiny_model, "--device", "cpu"
    )
    assert re.search(r"measured here on \d{4}-\d\d-\d\d: \S+ takes [\d.]+ of \S+'s time", planned.out), planned.out
    doctor = rows(cli("doctor").out)
    assert re.fullmatch(r"2 time\(s\) on this machine, the last on [\d-]+; engine and tile .+", doctor["measured"])

    assert cli("bench", "--forget") == Outcome(0, "forgot 2 measurement(s) of this machine\n", "")
    assert cli("bench", "--forget") == Outcome(0, "nothing was remembered of this machine\n", "")
    assert json.loads(cli("bench", "--forget", "--json").out) == {"forgotten": 0, "left": []}
    assert "nothing of this machine yet" in rows(cli("doctor").out)["measured"]


def test_what_a_program_reads(told: Benched) -> None:
    assert told.outcome.code == 0, told.outcome.err
    assert told.outcome.err.startswith("model: ./model.onnx\n")
    facts = json.loads(told.outcome.out)
    assert {row["precision"] for row in facts["rows"]} == {"fp32", "int8"}
    use = facts["use"][0]
    assert use["precision"] == "fp32"
    assert use["flags"][:4] == ["--engine", "onnxruntime-cpu", "--threads", "1"]
    assert use["pixels_per_second"] >= use["pixels_per_second_without"] * 0.94
    reasons = {(entry["precision"], entry["engine"]): entry["reason"] for entry in facts["engines"]}
    assert reasons == {("fp32", "onnxruntime-cpu"): None, ("int8", "onnxruntime-cpu"): None}
    assert facts["left_out"] == ["model.fp16.onnx: model.fp16.onnx is not an ONNX file, or is damaged"]
    assert facts["is_kept"] is False
    assert facts["machine"]["processor"]["usable"] >= 1
    assert not [path for path in told.home.rglob("*.json") if "costs" in path.parts]


def test_a_volume_is_tried(told: Benched) -> None:
    facts = json.loads(told.outcome.out)["volume"]
    assert facts["pixels"] == 2 * 200 * 300
    (estimate,) = facts["engines"]
    assert estimate["engine"] == "onnxruntime-cpu"
    assert estimate["seconds"] > 0
    tried = facts["tried"]
    assert (tried["blocks"], tried["empty_blocks"], tried["pixels"]) == (1, 0, 200 * 300)
    assert tried["pixels_per_second"] > 0
    assert tried["engine_pixels_per_second"] > 0
    assert snapshot(told.folder) == told.before


def test_a_model_that_is_chosen_anyway_is_not_named(
    tiny_artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(artifact=tiny_artifact, engine="openvino", costs=costs_of("openvino", {104: 1.0}))
    advice = advice_of(tiny_artifact, 1e-6)
    found = replace(found_of((trial,), (tiny_artifact,)), advices=(advice,), flags=("--engine", "openvino"))
    for is_given, model in ((False, ""), (True, f" --model {tiny_artifact.source}")):
        show(replace(found, is_given=is_given, keeping="not asked for"))
        said = rows(capsys.readouterr().out)
        assert said["use"] == f"unet-deploy segment VOLUME.zarr{model} --engine openvino"
        assert said["remembered"] == "nothing, as asked (--no-keep)"
    assert to_object(found)["volume"] is None


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


def test_what_is_remembered_is_for_these_threads(tiny_artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    for threads, whose in ((0, "segment and plan choose"), (4, "segment and plan with --threads 4 choose")):
        costs = replace(costs_of("onnxruntime-cpu", {104: 1.0}), threads=threads)
        trial = Trial(artifact=tiny_artifact, engine="onnxruntime-cpu", costs=costs)
        show(found_of((trial,), (tiny_artifact,)))
        assert rows(capsys.readouterr().out)["remembered"].startswith(f"{whose} by this from now on; ")


def test_the_help_says_what_a_measurement_is_for(cli: Cli) -> None:
    words = " ".join(cli("bench", "--help").out.split())
    assert "segment and plan, with the same --threads, then choose engine and tile by it" in words
    assert "What is found is for runs with the same --threads." in words


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


def test_what_could_not_be_forgotten_is_said(cli: Cli, tiny_artifact: Artifact, home: Path) -> None:
    """As in a folder that is read-only, or with files that another user's run has left there."""
    for threads in range(8):
        costs = replace(costs_of("onnxruntime-cpu", {104: 1.0}), threads=threads)
        assert keep_costs(tiny_artifact, costs) is not None
    (folder,) = home.rglob("costs")
    files = sorted(folder.iterdir())
    with failing("|".join(re.escape(file.name) for file in files[:6]), code=errno.EACCES, event="os.remove"):
        outcome = cli("bench", "--forget")
        assert count_costs().count == 6
        again = cli("bench", "--forget", "--json")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.splitlines() == [
        "error[output-path]: forgot 2 measurement(s) of this machine, and could not forget 6",
        *(f"  {file}: it cannot be deleted: Permission denied" for file in files[:5]),
        "  and 1 more",
        "  segment and plan go on choosing by those of them that they can read",
        "  fix: make them, and the folder they are in, yours to read and write, then: unet-deploy bench --forget",
    ]
    assert again.code == 3
    assert json.loads(again.out)["forgotten"] == 0
    assert json.loads(again.out)["left"] == [f"{file}: it cannot be deleted: Permission denied" for file in files[:6]]
    with failing("costs$", code=errno.EACCES, event="os.scandir"):
        outcome = cli("bench", "--forget")
    headline = "error[output-path]: forgot 0 measurement(s) of this machine, and could not forget an unknown number"
    assert outcome.err.startswith(f"{headline}\n  {folder}: it cannot be looked into: Permission denied\n")
    assert cli("bench", "--forget") == Outcome(0, "forgot 6 measurement(s) of this machine\n", "")


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
    advices = (advice_of(one, 1e-6), advice_of(other, 2e-6))
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
