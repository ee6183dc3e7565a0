"""The training loop; reading order is running order.

1. Normalise the images and compute each annotation's weight map once; put both on the device.
2. Each step: draw one large tile, forward, weighted pixel-wise softmax cross-entropy, backward, one step of the
   optimiser. A batch of one large tile with momentum 0.99 is the paper's: many past tiles determine each update
   (section 3).
3. The rate is a pure function of the step: linear warm-up, then half a cosine down to its end.
4. The network that is validated and kept has the running mean of the weights, where the recipe asks for it: a step
   follows one tile, the mean many.
5. Now and then, and at the end, segment every validation image in one pass over the whole mirrored image, the exact
   result the runtime's tiles reproduce; keep the weights that score best; write down all a resumed run needs.

Given seed, threads and machine, a run on the CPU repeats exactly, broken and resumed or not.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import unet_deploy
from unet_deploy.card import ClassInfo, InputContract, ModelCard, Network, Normalisation, Training
from unet_deploy.errors import ConfigurationError, UsageError
from unet_deploy.training.augment import draw_patch
from unet_deploy.training.config import About, Sampling, TrainingConfig, check_config
from unet_deploy.training.data import AnnotatedImage, TrainingData
from unet_deploy.training.device import open_device, precision
from unet_deploy.training.loss import weighted_cross_entropy
from unet_deploy.training.network import UNet
from unet_deploy.training.state import Best, History, RunIdentity, TrainingState, load_state, save_state
from unet_deploy.training.validation import Validation, default_metric, to_tensor, validate
from unet_deploy.training.weight_map import class_weights, weight_map

PALETTE = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
"""Class colours by index: black, then Okabe and Ito's colours for all kinds of colour vision, then white."""
MAX_IMAGES_SCORED = 8
"""The card lists the scores of each validation image up to this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a progress callback is told after each step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    elapsed_s: float
    eta_s: float
    validation: Validation | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingResult:
    """The best network of a run, its card, and how the run went."""

    model: UNet
    card: ModelCard
    best: Validation
    history: History
    steps: int
    seconds: float


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the rate of a step, counted from 0: linear warm-up, then half a cosine (Loshchilov and Hutter 2017).

    >>> config = TrainingConfig(steps=110, warm_up_steps=10, learning_rate=1.0, final_learning_rate_ratio=0.0)
    >>> [round(learning_rate(s, config), 3) for s in (0, 9, 10, 60, 110)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warm_up_steps:
        return config.learning_rate * (step + 1) / config.warm_up_steps
    progress = min((step - config.warm_up_steps) / max(config.steps - config.warm_up_steps, 1), 1.0)
    low = config.final_learning_rate_ratio
    return config.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


def average_decay(step: int, config: TrainingConfig) -> float:
    """Return how much of the mean of the weights a step, counted from 1, keeps: less at the start, to forget it.

    >>> config = TrainingConfig(weight_averaging=0.99)
    >>> [round(average_decay(step, config), 3) for step in (1, 10, 10_000)]
    [0.182, 0.55, 0.99]
    """
    return min(config.weight_averaging, (1 + step) / (10 + step))


def train_unet(  # noqa: PLR0915 - one function, so that reading order is running order
    data: TrainingData,
    config: TrainingConfig,
    *,
    about: About,
    state_path: Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_best: Callable[[UNet, ModelCard], None] = lambda _model, _card: None,
    on_validation: Callable[[UNet, History], None] = lambda _model, _history: None,
) -> TrainingResult:
    """Train the paper's network and return the best one by validation.

    Parameters
    ----------
    data
        Checked images (`read_training_data`).
    config
        Every number of the recipe.
    about
        What goes into the card as the user says it.
    state_path
        Where all that a resumed run needs is written at each validation; None writes nothing.
    resume
        Whether to go on from `state_path`, which then must be given. On the CPU the losses are those of the unbroken
        run, to the last digit.
    on_progress
        Called after every step.
    on_best
        Called with the model and its card whenever a validation is the best so far, so that a run that is
        killed leaves something. The model goes on changing: save it or copy it, do not keep it.
    on_validation
        Called after every validation with the model validated and the history so far; for a report.

    Raises
    ------
    ConfigurationError
        With every setting that cannot be, or if the loss stops being a number: the rate is too high.
    UsageError
        If a run is to be resumed and there is no `state_path`.
    CheckpointError
        If `state_path` cannot be read, or is of another run: other settings or data, which are named.
    NoSpaceError
        If the disk is full; the state written last is whole.
    DeviceError
        If the device asked for is not there.
    """
    check_config(config, data)
    device = open_device(config.device)
    metric = config.best_by or default_metric(data)
    identity = RunIdentity.of(data, config, device)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    gpus = [device] if device.type == "cuda" else []

    with _threads(config.threads), torch.random.fork_rng(devices=gpus):  # both are given back as they were
        torch.manual_seed(config.seed)
        model: UNet = UNet(
            depth=config.depth, base_width=config.base_width, classes=len(data.classes), dropout=config.dropout
        ).to(device=device, memory_format=layout)  # type: ignore[call-overload]
        average = copy.deepcopy(model).eval()  # what is validated and kept
        optimiser = make_optimiser(model, config)
        generator = torch.Generator().manual_seed(config.seed)  # images and patches
        weights = class_weights(data.class_pixels, config.class_balance)  # w_c of each class
        images = [to_tensor(a, data).to(device) for a in data.training]  # each (1, y, x)
        cells = torch.tensor([count_cells(a) for a in data.training], dtype=torch.float64)
        truths = [truth_tensor(a, weights, config).to(device) for a in data.training]  # each (2, y, x)

        best: Best | None = None
        history = History()
        step, started = 0, time.monotonic()
        if resume:
            state = load_state(_require_path(state_path), identity)
            state.restore(model, average, optimiser, generator)
            step, started, history, best = state.step, started - state.seconds, state.history, state.best
        is_over = step >= config.steps
        while not is_over:
            rate = learning_rate(step, config)
            set_rate(optimiser, rate)
            pick = draw_image(cells, config.sampling, generator=generator)
            tile, target, weight = draw_patch(
                images[pick],
                truths[pick],
                tile_side=config.tile_side,
                geometry=model.geometry,
                config=config.augmentation,
                generator=generator,
            )  # (1, 1, tile, tile), (1, out, out), (1, out, out)

            model.train()
            with precision(device, is_mixed=config.mixed_precision):
                logits = model(tile.contiguous(memory_format=layout))  # (1, classes, out, out)
            loss = weighted_cross_entropy(logits, target, weight)
            if not math.isfinite(loss.item()):
                raise _divergence_error(step, config)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            limit_gradient(model, config.gradient_norm_limit)
            optimiser.step()
            step += 1
            update_average(average, model, decay=average_decay(step, config))
            history.losses.append(loss.item())

            elapsed = time.monotonic() - started
            is_over = step == config.steps or (config.max_seconds is not None and elapsed >= config.max_seconds)
            validation = None
            if is_over or step % config.validation_every_steps == 0:
                _require_finite(average, step, config)
                validation = validate(average, data, step=step)
                history.validations.append(validation)
                elapsed = time.monotonic() - started
                if validation.is_better(None if best is None else best.validation, metric):
                    best = Best(validation=validation, seconds=elapsed, weights=copy.deepcopy(average.state_dict()))
                    on_best(average, fill_card(data, config, about=about, validation=validation, seconds=elapsed))
                if state_path is not None:
                    now = TrainingState.of(
                        model, average, optimiser, generator, history=history, best=best, seconds=elapsed
                    )
                    save_state(state_path, now, identity)
                on_validation(average, history)
            on_progress(_progress(step, config, loss.item(), rate, elapsed, is_over=is_over, validation=validation))

    assert best is not None
    average.load_state_dict(best.weights)
    return TrainingResult(
        model=average,
        card=fill_card(data, config, about=about, validation=best.validation, seconds=best.seconds),
        best=best.validation,
        history=history,
        steps=step,
        seconds=time.monotonic() - started,
    )


def draw_image(cells: Tensor, sampling: Sampling, *, generator: torch.Generator) -> int:
    """Return the index of the image that a patch is taken from, given the number of cells in each."""
    if sampling == "images":
        return int(torch.randint(len(cells), (), generator=generator))
    return int(torch.multinomial(cells.clamp(min=1), 1, generator=generator))


def count_cells(annotated: AnnotatedImage) -> int:
    """Return how many cells an annotation tells apart."""
    return 0 if annotated.cells is None else len(np.unique(annotated.cells[annotated.cells > 0]))


def make_optimiser(model: UNet, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser; its rate is set before each step."""
    if config.optimiser == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def limit_gradient(model: UNet, longest: float | None) -> None:
    """Shorten the gradient to this length if it is longer; None leaves it alone."""
    if longest is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), longest)


def update_average(average: UNet, model: UNet, *, decay: float) -> None:
    """Move the mean of the weights towards the present ones; a decay of 0 makes it these."""
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


def truth_tensor(annotated: AnnotatedImage, class_weights: tuple[float, ...], config: TrainingConfig) -> Tensor:
    """Return class indices and the loss's weights of an annotation, float32, (2, y, x)."""
    weights = weight_map(
        annotated.label,
        annotated.cells,
        class_weights=class_weights,
        border_weight=config.border_weight,
        border_sigma_px=config.border_sigma_px,
        ignored=annotated.ignored,
    )
    return torch.from_numpy(np.stack([annotated.label.astype(np.float32), weights]))


def fill_card(
    data: TrainingData, config: TrainingConfig, *, about: About, validation: Validation, seconds: float
) -> ModelCard:
    """Return the card of the weights that `validation` scores."""
    scores = {str(metric): value for metric, value in validation.values.items()}
    if len(validation.scores) <= MAX_IMAGES_SCORED:
        for one in validation.scores:
            scores |= {f"{metric} {one.stem}": value for metric, value in one.values.items()}
    return ModelCard(
        name=about.name,
        description=about.description,
        network=Network(depth=config.depth, base_width=config.base_width, in_channels=1, classes=len(data.classes)),
        input=InputContract(
            dtype=data.dtype,
            value_range=data.value_range,
            channels=(about.channel,),
            pixel_size_nm=about.pixel_size_nm,
        ),
        normalisation=Normalisation(
            mean=(data.mean,),
            std=(data.std,),
            source=f"all pixels of the {len(data.training)} training images",
            percentiles=data.percentiles,
        ),
        classes=tuple(
            ClassInfo(name=name, colour=PALETTE[index % len(PALETTE)]) for index, name in enumerate(data.classes)
        ),
        training=Training(
            data=about.data,
            licence=about.licence,
            citation=about.citation,
            images=len(data.training),
            validation=tuple(a.stem for a in data.validation),
            steps=validation.step,
            seed=config.seed,
            seconds=round(seconds, 1),
            versions={
                "unet-deploy": unet_deploy.__version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            scores=scores,
            recipe=asdict(config),
        ),
        histogram=data.histogram,
    )


def _progress(
    step: int,
    config: TrainingConfig,
    loss: float,
    rate: float,
    elapsed: float,
    *,
    is_over: bool,
    validation: Validation | None,
) -> Progress:
    eta = elapsed / step * (config.steps - step)
    if config.max_seconds is not None:
        eta = min(eta, config.max_seconds - elapsed)
    return Progress(
        step=step,
        steps=config.steps,
        loss=loss,
        learning_rate=rate,
        elapsed_s=elapsed,
        eta_s=0.0 if is_over else max(eta, 0.0),
        validation=validation,
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_path(state_path: Path | None) -> Path:
    if state_path is None:
        raise UsageError(
            "resume=True came without a state_path: there is nothing to go on from",
            fix="give the state_path of the broken run, or leave resume out",
        )
    return state_path


def _require_finite(model: UNet, step: int, config: TrainingConfig) -> None:
    """Refuse weights that a last step made infinite, before they can become the best."""
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise _divergence_error(step, config)


def _divergence_error(step: int, config: TrainingConfig) -> ConfigurationError:
    return ConfigurationError(
        f"training diverged: the loss is no finite number after {step} steps",
        f"the learning rate is {config.learning_rate:g}; a best network written before is sound",
        fix=f"--learning-rate {config.learning_rate / 4:g}",
    )
