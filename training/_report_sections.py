"""The parts of the training report that need no network: curves, patches, weight maps, settings, data.

Each function yields pieces of HTML. Patches and weight maps are computed here as the loop computes them, from the same
data and settings, so that the page shows what is trained on.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import unet_deploy
from unet_deploy.geometry import UnetGeometry
from unet_deploy.training import _report_page as html
from unet_deploy.training import _report_pictures as pictures
from unet_deploy.training._report_curves import MAX_POINTS, Line, Mark, asks_for_logarithm, draw_chart, running_mean
from unet_deploy.training.augment import draw_patch
from unet_deploy.training.config import Metric, TrainingConfig
from unet_deploy.training.data import AnnotatedImage, TrainingData
from unet_deploy.training.loop import count_cells, draw_image, learning_rate
from unet_deploy.training.state import History
from unet_deploy.training.validation import HIGHER_IS_BETTER, Validation, to_tensor
from unet_deploy.training.weight_map import class_weights, weight_map

PATCHES = 6
WEIGHT_MAPS = 2
NAMES: dict[Metric, str] = {
    "pixel_disagreement": "pixel disagreement",
    "foreground_dice": "foreground Dice",
    "rand_error": "Rand error",
    "seg": "SEG",
}


def find_best(history: History, metric: Metric) -> Validation | None:
    """Return the validation whose network is kept: the first of the best."""
    best: Validation | None = None
    for validation in history.validations:
        if validation.is_better(best, metric):
            best = validation
    return best


def curves(history: History, config: TrainingConfig, metric: Metric) -> Iterator[str]:
    yield html.heading("Curves")
    figures = []
    step = len(history.losses)
    if step:
        at, losses = np.arange(1, step + 1, dtype=np.float64), np.asarray(history.losses, np.float64)
        window = max(1, min(200, step // 20))
        smooth = running_mean(history.losses, window)
        svg = draw_chart(
            [Line(steps=at, values=losses, style="raw"), Line(steps=at, values=smooth)],
            alt=f"loss over {step:,} steps, now {smooth[-1]:.4g}",
            y_label="loss",
            steps=step,
            is_logarithmic=asks_for_logarithm(smooth),
        )
        faint = "each step" if step <= MAX_POINTS else f"mean of {-(-step // MAX_POINTS)} steps"
        figures.append(html.chart(svg, caption=f"Loss: mean of the last {window} steps; faint: {faint}."))
    for name, values in _series(history).items():
        best = find_best(history, metric)
        marks = [Mark(step=s, value=v, text="best network") for s, v in values if best and s == best.step]
        direction = "higher" if name in HIGHER_IS_BETTER else "lower"
        svg = draw_chart(
            [
                Line(
                    steps=np.array([s for s, _ in values], float),
                    values=np.array([v for _, v in values]),
                    has_dots=True,
                )
            ],
            alt=f"{NAMES[name]} over {step:,} steps, now {values[-1][1]:.4f}",
            y_label=NAMES[name],
            steps=step,
            mark=marks[0] if marks else None,
        )
        chosen = "; the best network is chosen by it" if name == metric else ""
        figures.append(html.chart(svg, caption=f"Validation: {NAMES[name]} ({direction} is better{chosen})."))
    steps = np.unique(np.linspace(0, config.steps - 1, min(config.steps, MAX_POINTS)).astype(np.int64))
    rates = np.array([learning_rate(int(s), config) for s in steps])
    rate = learning_rate(max(step - 1, 0), config)
    svg = draw_chart(
        [Line(steps=steps.astype(np.float64), values=rates)],
        alt=f"learning rate over {config.steps:,} steps, now {rate:.3g}",
        y_label="learning rate",
        steps=config.steps,
        mark=Mark(step=max(step - 1, 0), value=rate, text="now"),
    )
    figures.append(html.chart(svg, caption="Learning rate over the whole run as planned."))
    yield html.row(figures)
    yield html.note(f"A curve has at most {MAX_POINTS:,} points; of longer ones each point is the mean of neighbours.")


def _series(history: History) -> dict[Metric, list[tuple[float, float]]]:
    series: dict[Metric, list[tuple[float, float]]] = {}
    for validation in history.validations:
        for metric, value in validation.values.items():
            series.setdefault(metric, []).append((validation.step, value))
    return series


def patches(data: TrainingData, config: TrainingConfig) -> Iterator[str]:
    """Draw the first patches as the loop does, from a generator of the same seed but not the loop's own."""
    generator = torch.Generator().manual_seed(config.seed)
    cells = torch.tensor([count_cells(a) for a in data.training], dtype=torch.float64)
    drawn = []
    for _ in range(PATCHES):
        annotated = data.training[draw_image(cells, config.sampling, generator=generator)]
        is_open = np.zeros(annotated.label.shape, np.bool_) if annotated.ignored is None else annotated.ignored
        truth = torch.from_numpy(np.stack([annotated.label, is_open]).astype(np.float32))  # (2, y, x)
        tile, label, ignored = draw_patch(
            to_tensor(annotated, data),
            truth,
            tile_side=config.tile_side,
            geometry=UnetGeometry(config.depth),
            config=config.augmentation,
            generator=generator,
        )
        drawn.append((annotated, tile[0, 0].numpy(), label[0].numpy(), ignored[0].numpy() > 0))
    shown = {a.stem: to_tensor(a, data).numpy() for a, *_ in drawn}
    low, high = np.percentile(np.concatenate([image.ravel() for image in shown.values()]), [0.5, 99.5])
    stride = -(-config.tile_side // pictures.LARGEST_PATCH)
    yield html.heading("Patches as they are trained on")
    yield html.note(
        f"The first {PATCHES} of this seed. Yellow: borders of the label; blue: the frame of the network's output. "
        "Black and white are the same grey values in all, so that their contrast can be compared."
        + (f" Of {config.tile_side} px a side, one in {stride} is shown." if stride > 1 else "")
    )
    yield html.row(
        html.image(
            pictures.data_uri(pictures.draw_patch_sample(tile, label, ignored, grey_range=(float(low), float(high)))),
            alt=f"augmented patch {number} from {annotated.stem} with the borders of its label",
            caption=f"{number}: from {annotated.stem}",
        )
        for number, (annotated, tile, label, ignored) in enumerate(drawn, start=1)
    )


def weight_maps(data: TrainingData, config: TrainingConfig) -> Iterator[str]:
    """Draw image, annotation and weights of the training images with most cells."""
    chosen = sorted(data.training, key=lambda a: 0 if a.cells is None else -int(a.cells.max()))[:WEIGHT_MAPS]
    maps = [
        weight_map(
            annotated.label,
            annotated.cells,
            class_weights=class_weights(data.class_pixels, config.class_balance),
            border_weight=config.border_weight,
            border_sigma_px=config.border_sigma_px,
            ignored=annotated.ignored,
        )
        for annotated in chosen
    ]
    top = float(max(weights[pictures.centre(weights.shape)].max() for weights in maps))
    has_border = config.border_weight > 0 and any(a.cells is not None for a in chosen)
    yield html.heading("Weight of each pixel in the loss")
    yield html.note(
        (
            f"Class weight w_c plus {config.border_weight:g}·exp(−(d1 + d2)²/2σ²), σ = {config.border_sigma_px:g} px, "
            "outside the cells; d1 and d2 are the distances to the nearest two."
            if has_border
            else "Class weights alone: these labels and settings have no border term."
        )
        + f" {cut_note(chosen)} Grey stripes: ignored, weight 0."
    )
    yield html.colour_bar(pictures.heat_stops(), "0", f"{top / 2:.3g}", f"{top:.3g}")
    for annotated, weights in zip(chosen, maps, strict=True):
        stem = annotated.stem
        kind = "classes" if annotated.instances is None and annotated.cells is None else "objects"
        extent = f"weights {weights.min():.3g} to {weights.max():.3g}, mean {weights.mean():.3g}"
        annotation = pictures.data_uri(pictures.draw_annotation(annotated))
        drawn = pictures.data_uri(pictures.draw_weights(weights, annotated.ignored, greatest=top), is_heat=True)
        figures = [
            html.image(
                pictures.data_uri(pictures.draw_grey(annotated.image)), alt=f"training image {stem}", caption=stem
            ),
            html.image(annotation, alt=f"annotation of {stem}", caption=f"{kind} as annotated, each in its own colour"),
            html.image(drawn, alt=f"weight map of {stem}: {extent}", caption=extent),
        ]
        yield html.row(figures)


def settings(config: TrainingConfig) -> Iterator[str]:
    now, usual = _flat(asdict(config)), _flat(asdict(TrainingConfig()))
    yield html.heading("Settings")
    yield html.table(
        ("setting", "value", "default"),
        [(name, str(value), str(usual[name])) for name, value in now.items()],
        strong=[number for number, (name, value) in enumerate(now.items()) if value != usual[name]],
    )


def summary(data: TrainingData, config: TrainingConfig) -> Iterator[str]:
    total = sum(data.class_pixels) or 1
    weights = class_weights(data.class_pixels, config.class_balance)
    yield html.heading("Classes")
    yield html.table(
        ("class", "training pixels", "share", "weight w_c"),
        [
            (name, f"{count:,}", f"{count / total:.2%}", f"{weight:.4g}")
            for name, count, weight in zip(data.classes, data.class_pixels, weights, strict=True)
        ],
    )
    yield html.heading("Data")
    sides = sorted({annotated.image.shape for annotated in (*data.training, *data.validation)})
    ignored = sum(0 if a.ignored is None else int(a.ignored.sum()) for a in data.training)
    yield html.facts(
        [
            ("training images", f"{len(data.training)}: {', '.join(a.stem for a in data.training)}"),
            ("validation images", f"{len(data.validation)}: {', '.join(a.stem for a in data.validation)}"),
            ("left out", ", ".join(data.excluded) or "none"),
            ("sizes (y, x)", f"{sides[0]} to {sides[-1]}" if len(sides) > 1 else str(sides[0])),
            ("grey values", f"{data.dtype}, {data.value_range[0]:g} to {data.value_range[1]:g}"),
            (
                "scaled by percentiles",
                "no" if data.percentiles is None else f"{data.percentiles[0]:g} and {data.percentiles[1]:g}",
            ),
            ("mean and standard deviation", f"{data.mean:.5g} and {data.std:.5g}"),
            ("cells told apart", "none" if data.cell_class is None else data.classes[data.cell_class]),
            ("ignored training pixels", f"{ignored:,}"),
            ("warnings", "; ".join(data.warnings) or "none"),
        ]
    )
    yield html.heading("Versions")
    yield html.facts(
        [
            ("unet-deploy", unet_deploy.__version__),
            ("torch", str(torch.__version__)),
            ("numpy", np.__version__),
            ("python", f"{platform.python_version()} on {platform.system()}"),
        ]
    )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def cut_note(images: tuple[AnnotatedImage, ...] | list[AnnotatedImage]) -> str:
    if all(max(annotated.image.shape) <= pictures.LARGEST_SIDE for annotated in images):
        return "Whole images."
    return f"Of images larger than {pictures.LARGEST_SIDE} px the centre is shown."
