"""`train` as a function: what it writes, what it says where, how it goes on, and what it refuses before any work."""

from __future__ import annotations

import csv
import errno
import math
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")
io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")

from unet_deploy.cli._train_run import ProgressLines, RunFolder, full_disk_named, write_text  # noqa: E402
from unet_deploy.cli.train import parse_classes, parse_percentiles, parse_pixel_size, train  # noqa: E402
from unet_deploy.errors import (  # noqa: E402
    CheckpointError,
    ConfigurationError,
    DeviceError,
    InterruptedRunError,
    MissingDependencyError,
    ModelNotFoundError,
    NoSpaceError,
    OutputExistsError,
    OutputPathError,
    TrainingDataError,
    UsageError,
)
from unet_deploy.training import (  # noqa: E402
    DataConfig,
    Progress,
    Validation,
    load_checkpoint,
    read_recipe,
    read_training_data,
)
from unet_deploy.training.presets import PRESETS  # noqa: E402

Folders = tuple[Path, Path]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        label = (random.random((30, 40)) < 0.3).astype(np.uint8)
        save(images / f"{index}.png", (random.integers(0, 50, (30, 40)) + 100 * label).astype(np.uint8))
        save(labels / f"{index}.png", label)
    return images, labels


def save(path: Path, array: np.ndarray) -> None:
    io.imsave(path, array, check_contrast=False)


def run(folders: Folders, output: Path, **flags: Any) -> None:
    small: dict[str, Any] = {"depth": 1, "width": 2, "tile": 28, "steps": 3, "threads": 1, **flags}
    train(*folders, output=output, **small)


def losses(output: Path) -> list[str]:
    with RunFolder(output).path.joinpath("history.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "loss"]
    assert [int(step) for step, _ in rows] == list(range(1, len(rows) + 1))
    return [loss for _, loss in rows]


# ---- what it writes and says


def test_it_writes_a_checkpoint_and_says_what_to_type_next(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "discs.pt"
    run(folders, output, classes=["dark=0", "bright=1"], exclude=["0"], pixel_size_nm="4,5", data="noise")
    said = capsys.readouterr()
    _, card = load_checkpoint(output)
    assert (card.name, card.training.data, card.input.pixel_size_nm) == ("discs", "noise", (4.0, 5.0))
    assert card.description == "U-Net of depth 1 and width 2"
    assert [c.name for c in card.classes] == ["dark", "bright"]
    first, second, *rest = said.out.splitlines()
    assert first.startswith(f"wrote {output}: 3 of 3 steps were best, ")
    assert second.startswith("validation: pixel_disagreement 0.")
    assert "foreground_dice" in second
    assert second.endswith("(best by pixel_disagreement)")
    assert rest == [f"report: {tmp_path / 'discs.run' / 'report.html'}", f"next: unet-deploy export {output}"]
    assert "training on 1 images of uint8: dark " in said.err
    assert "validating on 2 (the last tenth; choose with --validate)" in said.err
    assert "leaving out 0" in said.err
    assert "step 3/3  loss " in said.err
    assert "images/s" in said.err


def test_the_run_folder_holds_recipe_state_report_and_history(folders: Folders, tmp_path: Path) -> None:
    output = tmp_path / "discs.pt"
    run(folders, output, assignments=["training.validation_every_steps=2", "augmentation.flip=false"])
    names = {path.name for path in (tmp_path / "discs.run").iterdir()}
    assert {"history.csv", "recipe.toml", "report.html", "state.pt", "validations.csv"} <= names
    assert [name for name in names if name.endswith(".part")] == []
    assert all(math.isfinite(float(loss)) for loss in losses(output))
    assert len(losses(output)) == 3
    lines = (tmp_path / "discs.run" / "validations.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("step,pixel_disagreement,foreground_dice")
    assert [line.partition(",")[0] for line in lines[1:]] == ["2", "3"]
    recipe = read_recipe(tmp_path / "discs.run" / "recipe.toml")
    assert (recipe.data.images, recipe.data.labels) == folders
    assert (recipe.training.base_width, recipe.training.validation_every_steps) == (2, 2)
    assert recipe.training.augmentation.flip is False
    assert (recipe.about.name, recipe.about.description) == ("discs", "U-Net of depth 1 and width 2")


def test_a_recipe_and_the_same_flags_train_the_same(folders: Folders, tmp_path: Path) -> None:
    run(folders, tmp_path / "flags.pt", seed=4)
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'preset = "small"\n[data]\nimages = "images"\nlabels = "labels"\n[about]\nname = "of the recipe"\n'
        "[training]\ndepth = 1\nbase_width = 2\ntile_side = 28\nsteps = 9\nthreads = 1\nseed = 4\nwarm_up_steps = 50\n",
        encoding="utf-8",
    )
    train(recipe=recipe, steps=3, assignments=["training.validation_every_steps=100"], output=tmp_path / "recipe.pt")
    assert losses(tmp_path / "flags.pt") == losses(tmp_path / "recipe.pt")
    again = RunFolder(tmp_path / "recipe.pt").recipe
    train(recipe=again, output=tmp_path / "again.pt")  # what a run was is a recipe
    assert losses(tmp_path / "again.pt") == losses(tmp_path / "recipe.pt")
    assert load_checkpoint(tmp_path / "again.pt")[1].name == "of the recipe"


@pytest.mark.parametrize(
    ("output", "folder"), [("model.pt", "model.run"), ("a.b.pt", "a.b.run"), ("m.run", "m.run.run")]
)
def test_the_run_folder_is_named_like_the_output(output: str, folder: str) -> None:
    assert RunFolder(Path("x") / output).path == Path("x") / folder


def progress(step: int, loss: float, elapsed_s: float, validation: Validation | None = None) -> Progress:
    return Progress(
        step=step, steps=9, loss=loss, learning_rate=0.01, elapsed_s=elapsed_s, eta_s=75, validation=validation
    )


def test_a_line_has_the_mean_loss_since_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    for step, (loss, elapsed) in enumerate([(1.0, 4), (2.0, 8), (6.0, 12), (5.0, 16)], 1):
        lines(progress(step, loss, elapsed))
    lines(progress(5, 7.0, 17, Validation(step=5, values={"seg": 0.5, "foreground_dice": 0.25}, scores=())))
    assert capsys.readouterr().err.splitlines() == [
        "step 3/9  loss 3.0000  rate 1.00e-02  4.00 s/step  1 min 15 s left",
        "step 5/9  loss 6.0000  rate 1.00e-02  3.40 s/step  1 min 15 s left  |  seg 0.5000, foreground_dice 0.2500",
    ]


# ---- going on


def test_a_run_that_was_ended_goes_on_as_if_it_had_not_been(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    every = {"assignments": ["training.validation_every_steps=4"]}
    run(folders, whole, steps=8, **every)
    run(folders, broken, steps=8, max_minutes=1e-9, **every)
    assert len(losses(broken)) == 1
    capsys.readouterr()
    train(output=broken, resume=True)  # the recipe is the run's own
    assert capsys.readouterr().out.startswith(f"wrote {broken}: ")
    assert losses(broken) == losses(whole)
    states = [torch.load(RunFolder(path).state, weights_only=True)["model"] for path in (whole, broken)]
    assert len(states[0]) == len(states[1]) > 0
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_same_command_with_resume_goes_on(folders: Folders, tmp_path: Path) -> None:
    output = tmp_path / "model.pt"
    run(folders, output, max_minutes=1e-9)
    run(folders, output, resume=True)
    assert len(losses(output)) == 3
    output.unlink()
    run(folders, output, resume=True)  # nothing left to do: the best network is in the state
    assert load_checkpoint(output)[1].training.steps in (1, 3)


def test_another_run_s_state_is_refused_and_left_alone(folders: Folders, tmp_path: Path) -> None:
    output = tmp_path / "model.pt"
    run(folders, output, max_minutes=1e-9)
    kept = RunFolder(output)
    before = {path: path.read_bytes() for path in (output, kept.recipe, kept.state)}
    for flags in ({"width": 3}, {"preset": "small", "depth": 1, "tile": 28}, {"learning_rate": 0.5}):
        with pytest.raises(CheckpointError, match="is of another run") as caught:
            train(output=output, resume=True, **flags)
        assert "in the broken run" in str(caught.value)
    with pytest.raises(ConfigurationError, match="preset: 'smal' is none of"):
        train(output=output, resume=True, preset="smal")
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_broken_before_its_first_validation_starts_again(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.pt"
    run(folders, output)
    output.unlink()
    RunFolder(output).state.unlink()  # as such a run leaves it
    train(output=output, resume=True)
    assert f"{tmp_path / 'model.run'} holds no state yet: starting at step 0" in capsys.readouterr().err
    assert output.is_file()


def test_nothing_to_go_on_with(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no training to resume: .*state\.pt does not exist"):
        train(output=tmp_path / "model.pt", resume=True)
    run(folders, tmp_path / "model.pt")
    RunFolder(tmp_path / "model.pt").state.unlink()  # a network that nothing can continue must not be replaced
    with pytest.raises(ModelNotFoundError, match="there is no training to resume") as caught:
        train(output=tmp_path / "model.pt", resume=True)
    assert "fix: check --output, or train without --resume" in str(caught.value)


class Impatient:
    """A user who breaks the run off at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, text: str) -> int:
        if text.startswith(f"step {self.step}/"):
            raise KeyboardInterrupt
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


def test_ctrl_c_says_how_to_go_on(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model.pt"
    with monkeypatch.context() as context:
        context.setattr(sys, "stderr", Impatient(step=2))
        with pytest.raises(InterruptedRunError, match="interrupted after step 2") as caught:
            run(folders, output, steps=6, assignments=["training.validation_every_steps=2"])
    assert caught.value.exit_code == 130
    assert f"{RunFolder(output).state} holds the last validation" in str(caught.value)
    assert f"fix: go on with: unet-deploy train --resume -o {output}" in str(caught.value)
    train(output=output, resume=True)
    assert len(losses(output)) == 6


# ---- what is refused


def test_what_stands_at_the_output_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    output = tmp_path / "model.pt"
    nowhere = (tmp_path / "no", tmp_path / "no")
    output.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"model\.pt exists already") as caught:
        run(nowhere, output)
    assert "--resume" in caught.value.fix
    assert "--overwrite" in caught.value.fix
    with pytest.raises(TrainingDataError, match=r"problem\(s\) with the training data"):
        run(nowhere, output, overwrite=True)
    (tmp_path / "model.run").mkdir()
    (tmp_path / "model.run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"model\.pt and .*model\.run exist already"):
        run(nowhere, output)
    assert output.read_bytes() == b"precious"
    output.unlink()
    with pytest.raises(OutputExistsError, match=r"model\.run exists already"):
        run(nowhere, output)


def test_overwrite_replaces_the_run_and_touches_nothing_else(folders: Folders, tmp_path: Path) -> None:
    output = tmp_path / "model.pt"
    run(folders, output)
    note = tmp_path / "model.run" / "notes.txt"
    note.write_text("mine")
    run(folders, output, steps=2, overwrite=True)
    assert (len(losses(output)), note.read_text()) == (2, "mine")


def test_a_place_that_cannot_be(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "model.run").write_text("a file")
    with pytest.raises(OutputPathError, match=r"model\.run is a file; the folder of the run"):
        run(folders, tmp_path / "model.pt")
    with pytest.raises(OutputPathError, match="is a folder, a file was expected"):
        run(folders, folders[0])
    with pytest.raises(OutputPathError, match="there is no folder"):
        run(folders, tmp_path / "no" / "model.pt")


def test_flags_that_cannot_be_meant(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"3 problem\(s\) with the recipe") as caught:
        run(folders, tmp_path / "model.pt", tile=29, threads=0, steps=0)
    for expected in ("training.tile_side: 29 is not legal for depth 1", "training.threads: 0 is not above 0"):
        assert expected in str(caught.value)
    with pytest.raises(UsageError, match="--resume and --overwrite were given, at most one of them was expected"):
        run(folders, tmp_path / "model.pt", resume=True, overwrite=True)
    with pytest.raises(UsageError, match="--class 'membrane' is not NAME=VALUE with a whole number") as refused:
        parse_classes(["membrane"])
    assert "--class membrane=0" in str(refused.value)
    with pytest.raises(UsageError, match="--class 'a' is given twice"):
        parse_classes(["a=1", "a=2"])
    for text in ("four", "4,5,6", "0", "-1", "inf", "nan", ""):
        with pytest.raises(UsageError, match="is not one or two positive numbers"):
            parse_pixel_size(text)
    for text in ("1", "1,2,3", "5,5", "99,1", "-1,50", "0,101", "nan,5", "a,b", ""):
        with pytest.raises(UsageError, match="is not LOW,HIGH with 0 <= LOW < HIGH <= 100"):
            parse_percentiles(text)
    assert not (tmp_path / "model.pt").exists()


def test_what_data_and_settings_cannot_be_together_leaves_nothing(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"1 setting\(s\) of the training cannot be") as caught:
        run(folders, tmp_path / "model.pt", tile=92)
    assert "tile_side: 92 is larger than 0, 30 px, mirrored once on either side (88 px); 88 would fit" in str(
        caught.value
    )
    with pytest.raises(DeviceError, match="cuda:99 was asked for"):
        run(folders, tmp_path / "model.pt", device="cuda:99")
    with pytest.raises(UsageError, match="device 'gpu' is none of auto, cpu, cuda and cuda:i"):
        run(folders, tmp_path / "model.pt", device="gpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


def test_flags_that_mean_something() -> None:
    assert parse_classes(None) is None
    assert parse_classes(["odd=name=3", "b=-1"]) == {"odd=name": 3, "b": -1}
    assert parse_pixel_size(None) is None
    assert parse_pixel_size("4") == (4.0, 4.0)
    assert parse_pixel_size("4, 4.5") == (4.0, 4.5)
    assert parse_percentiles(None) is None
    assert parse_percentiles("none") == "none"
    assert parse_percentiles("1,99.8") == (1.0, 99.8)


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    write_text(path, "before")
    with (
        pytest.raises(NoSpaceError, match=r"the disk is full: .*history\.csv cannot be written") as caught,
        full_disk_named(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "fix: free some space and go on with --resume" in str(caught.value)
    with pytest.raises(PermissionError), full_disk_named(path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udc80")
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["history.csv"]


# ---- the package


class NoSkimage(MetaPathFinder):
    """Python without scikit-image."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "skimage":
            raise ModuleNotFoundError("No module named 'skimage'", name="skimage")


def test_a_missing_reader_names_the_extra(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NoSkimage(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match="reading images needs the package 'scikit-image'") as caught:
        read_training_data(DataConfig(images=folders[0], labels=folders[1]))
    assert "pip install 'unet-deploy[train]'" in str(caught.value)


def test_the_package_loads_no_torch_and_names_the_extra_where_it_is_missing() -> None:
    script = (
        "import sys\n"
        "import unet_deploy.training as training\n"
        "import unet_deploy.training.presets\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'UNet' in dir(training)\n"
        "sys.modules['torch'] = None\n"
        "for name in ('UNet', 'read_recipe'):\n"
        "    try:\n"
        "        getattr(training, name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("training needs the package 'torch', which is not installed")
    assert said.count("pip install 'unet-deploy[train]'") == 2


def test_the_package_has_no_other_names() -> None:
    import unet_deploy.training as training

    assert all(getattr(training, name).__module__.startswith("unet_deploy.training.") for name in training.__all__)
    with pytest.raises(AttributeError, match=r"module 'unet_deploy\.training' has no attribute 'Unet'"):
        training.Unet  # noqa: B018


def test_the_help_names_every_preset() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "unet_deploy", "train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "Recipe to start from: " in shown
    assert [name for name in PRESETS if name not in shown] == []
