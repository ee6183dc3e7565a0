"""The training loop; reading order is running order.

1. Normalise the images with the training images' constants; put them on the device once.
2. Each step: draw one large tile, forward, class-weighted pixel-wise softmax cross-entropy, backward, Adam.
3. The rate is a pure function of the step: linear warm-up, then half a cosine down to its end.
4. Now and then, and at the end, segment every validation image in one pass over the whole mirrored image, the exact
   result the runtime's tiles reproduce; keep the weights with the lowest pixel disagreement.

Given seed, threads and machine, a run on the CPU repeats exactly.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import unet_deploy
from unet_deploy.card import ClassInfo, InputContract, ModelCard, Network, Normalisation, Training
from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import Geometry
from unet_deploy.training.augment import draw_patch
from unet_deploy.training.config import About, TrainingConfig, check_config
from unet_deploy.training.data import TrainingData
from unet_deploy.training.network import UNet
from unet_deploy.training.validation import Validation, to_tensor, validate

PALETTE = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
"""Class colours by index: black, then Okabe and Ito's colours for all kinds of colour vision, then white."""


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


def train_unet(
    data: TrainingData,
    config: TrainingConfig,
    *,
    about: About,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_best: Callable[[UNet, ModelCard], None] = lambda _model, _card: None,
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
    on_progress
        Called after every step.
    on_best
        Called with the model and its card whenever a validation is the best so far, so that a run that is
        killed leaves something. The model is the one in training: save it or copy it, do not keep it.

    Raises
    ------
    ConfigurationError
        With every setting that cannot be, or if the loss stops being a number: the rate is too high.
    """
    check_config(config, data)
    geometry = Geometry(config.depth)
    started = time.monotonic()

    with _threads(config.threads), torch.random.fork_rng(devices=[]):  # both are given back as they were
        torch.manual_seed(config.seed)
        model = UNet(
            depth=config.depth, base_width=config.base_width, classes=len(data.classes), dropout=config.dropout
        )
        optimiser = torch.optim.Adam(model.parameters())
        generator = torch.Generator().manual_seed(config.seed)  # images and patches
        images = [to_tensor(a.image, data) for a in data.training]  # each (1, y, x)
        labels = [torch.from_numpy(a.label) for a in data.training]  # each (y, x)
        weights = class_weights(data.class_pixels, config.class_balance)  # (classes,)

        best: tuple[Validation, ModelCard, dict[str, Tensor]] | None = None
        step = 0
        while True:
            rate = learning_rate(step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            pick = int(torch.randint(len(images), (), generator=generator))
            tile, target = draw_patch(
                images[pick],
                labels[pick],
                tile_side=config.tile_side,
                geometry=geometry,
                config=config.augmentation,
                generator=generator,
            )  # (1, 1, tile, tile), (1, out, out)

            model.train()
            logits = model(tile)  # (1, classes, out, out)
            loss = functional.cross_entropy(logits, target, weight=weights)
            if not math.isfinite(loss.item()):
                raise _divergence_error(step, config)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_norm_limit)
            optimiser.step()
            step += 1

            elapsed = time.monotonic() - started
            is_over = step == config.steps or (config.max_seconds is not None and elapsed >= config.max_seconds)
            validation = None
            if is_over or step % config.validation_every_steps == 0:
                validation = validate(model, data, step=step)
                elapsed = time.monotonic() - started
                if best is None or validation.disagreement < best[0].disagreement:
                    card = fill_card(data, config, about=about, validation=validation, seconds=elapsed)
                    best = validation, card, copy.deepcopy(model.state_dict())
                    on_best(model, card)
            eta = elapsed / step * (config.steps - step)
            if config.max_seconds is not None:
                eta = min(eta, config.max_seconds - elapsed)
            on_progress(
                Progress(
                    step=step,
                    steps=config.steps,
                    loss=loss.item(),
                    learning_rate=rate,
                    elapsed_s=elapsed,
                    eta_s=0.0 if is_over else max(eta, 0.0),
                    validation=validation,
                )
            )
            if is_over:
                break

    assert best is not None
    model.load_state_dict(best[2])
    model.eval()
    return TrainingResult(model=model, card=best[1], best=best[0], steps=step, seconds=elapsed)


def class_weights(class_pixels: tuple[int, ...], balance: float) -> Tensor:
    """Return each class's weight, frequency ** -balance, scaled so that the mean over pixels is 1."""
    frequency = torch.tensor(class_pixels, dtype=torch.float64) / sum(class_pixels)
    weights = frequency**-balance
    return (weights / (weights * frequency).sum()).float()


def fill_card(
    data: TrainingData, config: TrainingConfig, *, about: About, validation: Validation, seconds: float
) -> ModelCard:
    """Return the card of the weights that `validation` scores."""
    scores = {"pixel_disagreement": validation.disagreement, "foreground_dice": validation.dice}
    for one in validation.scores:
        scores |= {f"pixel_disagreement {one.stem}": one.disagreement, f"foreground_dice {one.stem}": one.dice}
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
            mean=(data.mean,), std=(data.std,), source=f"all pixels of the {len(data.training)} training images"
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


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _divergence_error(step: int, config: TrainingConfig) -> ConfigurationError:
    return ConfigurationError(
        f"training diverged: the loss is no finite number after {step} steps",
        f"the learning rate is {config.learning_rate:g}; a best network written before is sound",
        fix=f"--learning-rate {config.learning_rate / 4:g}",
    )
