"""What people look at while a network trains: one HTML file, written anew after every validation.

1. Head: how far the run is, the scores now and at their best. Curves: loss, rate, each validation metric.
2. Made once: the run's first patches as augmentation makes them, and the weight maps of two images (paper, figure 3).
3. After each validation: the borders predicted in up to four validation images, the same ones each time.
4. Tail: every setting, classes, data and versions.

Looking changes nothing: patches come from a generator of the report's own, predictions draw no random numbers. Where
the page cannot be written, the log says so, and the training goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import OutputPathError
from unet_deploy.training import _report_page as html
from unet_deploy.training import _report_pictures as pictures
from unet_deploy.training import _report_sections as sections
from unet_deploy.training.config import Metric, TrainingConfig
from unet_deploy.training.data import AnnotatedImage, TrainingData
from unet_deploy.training.loop import TrainingResult
from unet_deploy.training.network import UNet
from unet_deploy.training.state import History
from unet_deploy.training.validation import HIGHER_IS_BETTER, Validation, predict_whole

OVERLAYS = 4
_log = logging.getLogger(__name__)


class TrainingReport:
    """A page about one run that is kept up to date.

    Parameters
    ----------
    path
        The HTML file; its folder must exist.
    data, config
        What is trained on, and how.
    metric
        What the best network is chosen by.
    title
        The name of the model.
    now
        The clock.

    Raises
    ------
    OutputPathError
        If there is no such folder, or the path is a folder.
    """

    def __init__(
        self,
        path: Path,
        *,
        data: TrainingData,
        config: TrainingConfig,
        metric: Metric,
        title: str = "training",
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise OutputPathError(
                f"the training report cannot be written to {path}",
                "a file's name in a folder that exists was expected",
                fix="create the folder, or choose another",
            )
        self._path = path
        self._data, self._config, self._metric, self._title = data, config, metric, title
        self._now, self._began = now, now()
        self._history = History()
        self._device = "not known yet"
        self._overlays = ""
        self._samples: str | None = None

    def start(self) -> None:
        """Write the page before the first step: patches, weight maps and settings can be looked at."""
        self._write("waiting for the first validation", is_over=False)

    def update(self, model: UNet, history: History) -> None:
        """Write the page anew; to be called after each validation, with the model that was validated."""
        self._history, self._device = history, str(next(model.parameters()).device)
        self._overlays = self._draw_overlays(model, history.validations[-1])
        is_over = len(history.losses) >= self._config.steps
        self._write("finished" if is_over else "training", is_over=is_over)

    def finish(self, result: TrainingResult) -> None:
        """Write the page for the last time, with the best network's predictions."""
        self._history, self._device = result.history, str(next(result.model.parameters()).device)
        self._overlays = self._draw_overlays(result.model, result.best, whose="the best network, ")
        self._write("finished", is_over=True, seconds=result.seconds)

    def stop(self, reason: str) -> None:
        """Write the page for the last time as it is, with why the run ended early."""
        self._write(f"stopped: {reason}", is_over=True)

    def _write(self, state: str, *, is_over: bool, seconds: float | None = None) -> None:
        if self._samples is None:
            self._samples = "\n".join(
                [*sections.patches(self._data, self._config), *sections.weight_maps(self._data, self._config)]
            )
        parts = [
            *self._head(state, seconds),
            *sections.curves(self._history, self._config, self._metric),
            self._overlays,
            self._samples,
            *sections.settings(self._config),
            *sections.summary(self._data, self._config),
        ]
        text = html.page(self._title, parts, is_over=is_over)
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(self._path)
        except OSError as error:  # a page is not worth hours of training
            _log.warning("the training report %s cannot be written, the training goes on: %s", self._path, error)
        finally:
            partial.unlink(missing_ok=True)

    def _head(self, state: str, seconds: float | None) -> Iterator[str]:
        now = self._now()
        spent = (now - self._began).total_seconds() if seconds is None else seconds
        best = sections.find_best(self._history, self._metric)
        better = "higher" if self._metric in HIGHER_IS_BETTER else "lower"
        rows = [
            ("state", state),
            ("step", f"{len(self._history.losses):,} of {self._config.steps:,}"),
            ("time", f"{spent:,.0f} s{' since the report began' if seconds is None else ''}"),
            ("device", self._device),
            ("written", now.isoformat(sep=" ", timespec="seconds")),
        ]
        if best is not None:
            value = f"{sections.NAMES[self._metric]} {best.values[self._metric]:.4f}"
            rows.insert(3, ("best so far", f"step {best.step:,}: {value} ({better} is better)"))
        yield html.facts(rows)
        yield from (html.warning(f"warning: {text}") for text in self._data.warnings)
        if best is not None:
            yield _score_table(self._history, best, self._metric)

    def _draw_overlays(self, model: UNet, validation: Validation, *, whose: str = "") -> str:
        ranked = rank_images(self._history.validations[0], self._metric)
        parts = [
            html.heading(f"Borders in validation images: {whose}step {validation.step:,}"),
            html.legend(
                zip(
                    pictures.LINE_COLOURS[:3],
                    ("found: predicted and annotated", "missed: annotated only", "wrong: predicted only"),
                    strict=True,
                )
            ),
            html.note(
                f"Borders count as the same within {pictures.TOLERANCE_PX} px. The images were ranked at the first "
                "validation and stay the same, to be compared over time. Grey stripes: ignored in the annotation. "
                + sections.cut_note(self._data.validation)
            ),
        ]
        figures = []
        for index, rank in ranked:
            annotated, score = self._data.validation[index], validation.scores[index]
            match = pictures.draw_borders(annotated, predicted_classes(model, annotated, self._data))
            agreement = (
                f"{_percent(match.found)} of the annotated border found, {_percent(match.right)} of the predicted right"
            )
            scores = ", ".join(f"{sections.NAMES[metric]} {value:.4f}" for metric, value in score.values.items())
            grey = pictures.data_uri(pictures.draw_grey(annotated.image))
            figures += [
                html.image(grey, alt=f"validation image {annotated.stem}", caption=f"{annotated.stem} ({rank})"),
                html.image(
                    pictures.data_uri(match.picture),
                    alt=f"predicted against annotated borders of {annotated.stem}: {agreement}",
                    caption=f"{scores}; {agreement}",
                ),
            ]
        return "\n".join([*parts, html.row(figures)])


def rank_images(validation: Validation, metric: Metric) -> list[tuple[int, str]]:
    """Return up to OVERLAYS image indices, from the worst to the best by this metric, with their rank in words."""
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    values = [sign * score.values.get(metric, 1.0) for score in validation.scores]  # SEG: none without objects
    order = sorted(range(len(values)), key=values.__getitem__)
    places = sorted({round(float(at)) for at in np.linspace(0, len(order) - 1, min(len(order), OVERLAYS))})
    words = {0: "worst", len(order) - 1: "best"} if len(order) > 1 else {0: "the only one"}
    return [(order[at], words.get(at, "in between") + (" at first" if len(order) > 1 else "")) for at in places]


def predicted_classes(model: UNet, annotated: AnnotatedImage, data: TrainingData) -> npt.NDArray[np.uint8]:
    """Return the class of each pixel, uint8, (y, x)."""
    return np.asarray(predict_whole(model, annotated, data).argmax(0), np.uint8)


def _score_table(history: History, best: Validation, chosen_by: Metric) -> str:
    last = history.validations[-1]
    rows = []
    for metric, value in last.values.items():
        own = sections.find_best(history, metric)
        assert own is not None
        better = "higher" if metric in HIGHER_IS_BETTER else "lower"
        at_best, ever = best.values[metric], f"{own.values[metric]:.4f} (step {own.step:,})"
        rows.append((sections.NAMES[metric], better, f"{value:.4f}", f"{at_best:.4f}", ever))
    header = ("metric", "better is", f"now (step {last.step:,})", f"best network (step {best.step:,})", "best ever")
    return html.table(header, rows, strong=[list(last.values).index(chosen_by)])


def _percent(part: float | None) -> str:
    return "none" if part is None else f"{part:.1%}"
