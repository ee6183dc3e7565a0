"""The run folder of a training and what a training says while it runs.

``model.pt`` has ``model.run`` beside it: ``recipe.toml``, all settings as they were resolved; ``state.pt``, all that a
resumed run needs; ``report.html``; ``history.csv``, the loss of each step; ``validations.csv``, the scores of
each validation.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unet_deploy.cli._report import format_seconds
from unet_deploy.errors import ModelNotFoundError, NoSpaceError, OutputExistsError, OutputPathError

if TYPE_CHECKING:
    from unet_deploy.training import History, Progress, TrainingData, Validation

SECONDS_BETWEEN_LINES = 10.0
MAX_STEMS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places of a training that writes the checkpoint `output`."""

    output: Path

    @property
    def path(self) -> Path:
        """The folder, beside the checkpoint."""
        stem = self.output.name if self.output.suffix == ".run" else self.output.stem
        return self.output.with_name(f"{stem}.run")

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def state(self) -> Path:
        """What a resumed run goes on from."""
        return self.path / "state.pt"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def resume_command(self) -> str:
        """What to type to go on."""
        return f"unet-deploy train --resume -o {self.output}"

    def check_place(self) -> None:
        """Say whether checkpoint and folder can be written there.

        Raises
        ------
        OutputPathError
            If the checkpoint's name is a folder's, its folder does not exist, or a file has the run folder's name.
        """
        from unet_deploy.training.checkpoint import check_output

        check_output(self.output, overwrite=True)
        if self.path.exists() and not self.path.is_dir():
            raise OutputPathError(
                f"{self.path} is a file; the folder of the run that writes {self.output} was to be there",
                fix="choose another --output, or move that file",
            )

    def check_new(self) -> None:
        """Refuse to replace an earlier training.

        Raises
        ------
        OutputExistsError
            If the checkpoint is there, or the folder with anything in it.
        """
        taken = [str(self.output)] if self.output.exists() else []
        if self.path.is_dir() and any(self.path.iterdir()):
            taken.append(str(self.path))
        if taken:
            raise OutputExistsError(
                f"{' and '.join(taken)} exist{'s' if len(taken) == 1 else ''} already",
                "an earlier training wrote there",
                fix="go on with it: --resume; replace it: --overwrite; or choose another --output",
            )

    def can_resume(self) -> bool:
        """Tell whether there is a state to go on from; a run broken before its first validation has none yet.

        Raises
        ------
        ModelNotFoundError
            If no such run was ever begun, or its state is gone.
        """
        if self.state.is_file():
            return True
        if self.recipe.is_file() and not self.output.exists():
            return False
        raise ModelNotFoundError(
            f"there is no training to resume: {self.state} does not exist",
            f"--resume goes on with the training that writes {self.output}",
            fix="check --output, or train without --resume",
        )

    def begin(self, recipe: str, *, is_new: bool) -> None:
        """Make the folder, clear what an earlier run left if this one is new, and write the recipe."""
        with full_disk_named(self.path):
            self.path.mkdir(exist_ok=True)
            if is_new:
                for old in (self.state, self.report, self.path / "history.csv", self.path / "validations.csv"):
                    old.unlink(missing_ok=True)
        write_text(self.recipe, recipe)

    def write_history(self, history: History) -> None:
        """Write the losses and the validations so far as two tables."""
        losses = [[step, f"{loss:.6g}"] for step, loss in enumerate(history.losses, 1)]
        write_text(self.path / "history.csv", _to_csv([["step", "loss"], *losses]))
        metrics = list(history.validations[0].values)
        scores = [[v.step, *(f"{v.values[metric]:.6g}" for metric in metrics)] for v in history.validations]
        write_text(self.path / "validations.csv", _to_csv([["step", *metrics], *scores]))


class ProgressLines:
    """Writes a line every few seconds and at every validation."""

    def __init__(self) -> None:
        self.step = 0
        self._last_s: float | None = None
        self._losses: list[float] = []

    def __call__(self, progress: Progress) -> None:
        self.step = progress.step
        self._losses.append(progress.loss)
        last_s = 0.0 if self._last_s is None else self._last_s
        if progress.validation is None and progress.elapsed_s - last_s < SECONDS_BETWEEN_LINES:
            return
        self._last_s = progress.elapsed_s
        line = (
            f"step {progress.step}/{progress.steps}  loss {sum(self._losses) / len(self._losses):.4f}  "
            f"rate {progress.learning_rate:.2e}  {progress.elapsed_s / progress.step:.2f} s/step  "
            f"{format_seconds(progress.eta_s)} left"
        )
        self._losses.clear()
        if progress.validation is not None:
            line += f"  |  {show_scores(progress.validation)}"
        typer.echo(line, err=True)


def say_data(data: TrainingData, *, is_chosen_here: bool, is_stack: bool) -> None:
    """Say on stderr what is trained on, and what looks odd."""
    total = sum(data.class_pixels)
    shares = ", ".join(f"{name} {n / total:.1%}" for name, n in zip(data.classes, data.class_pixels, strict=True))
    how = "spread over the stack" if is_stack else "the last tenth"
    why = f" ({how}; choose with --validate)" if is_chosen_here else ""
    typer.echo(f"training on {len(data.training)} images of {data.dtype}: {shares}", err=True)
    typer.echo(f"validating on {_some([image.stem for image in data.validation])}{why}", err=True)
    if data.excluded:
        typer.echo(f"leaving out {_some(list(data.excluded))}", err=True)
    for warning in data.warnings:
        typer.echo(f"warning: {warning}", err=True)


def show_scores(validation: Validation) -> str:
    """Return the scores over all validation images by metric."""
    return ", ".join(f"{metric} {value:.4f}" for metric, value in validation.values.items())


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    NoSpaceError
        If the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with full_disk_named(path):
            temporary.write_text(text, encoding="utf-8", newline="\n")
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn the system's error about a full disk into ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            f"the disk is full: {path} cannot be written",
            "the checkpoint and the state written last are whole",
            fix="free some space and go on with --resume",
        ) from error


def _to_csv(rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _some(stems: list[str]) -> str:
    shown = ", ".join(stems[:MAX_STEMS_SHOWN])
    return shown + (f" and {len(stems) - MAX_STEMS_SHOWN} more" if len(stems) > MAX_STEMS_SHOWN else "")
