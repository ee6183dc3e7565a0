"""All that a training run needs to go on exactly where it was: one torch file that holds no code.

1. `TrainingState` holds the step, the weights and their mean, the optimiser's moments, both random generators, the
   losses and validations so far, and the best weights.
2. `RunIdentity` says which run it is of: settings and a hash of the data. A resumed run with another identity would be
   neither the old run nor a new one, so it is refused, with what differs.
3. `save_state` replaces the file whole or not at all; `load_state` loads it with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from unet_deploy.errors import CheckpointError, ModelNotFoundError
from unet_deploy.training.checkpoint import load_plain, write_torch_file
from unet_deploy.training.config import TrainingConfig
from unet_deploy.training.data import TrainingData
from unet_deploy.training.network import UNet
from unet_deploy.training.validation import Score, Validation

STATE_KEY = "unet_deploy_training_state"
STATE_VERSION = 1
_FIX = "use the run folder of the training that was broken off, or train anew without --resume"


@dataclass(slots=True, kw_only=True)
class History:
    """The loss of every step, and every validation, in order."""

    losses: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Best:
    """The best weights so far, their validation, and after how many seconds of training they came."""

    validation: Validation
    seconds: float
    weights: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What must be the same for a run to be continued; `max_seconds` may differ, since it only ends a run."""

    settings: dict[str, Any]
    data_sha256: str

    @classmethod
    def of(cls, data: TrainingData, config: TrainingConfig, device: torch.device) -> RunIdentity:
        """Return the identity of a run on these data."""
        # On the CPU, the sum of gradients depends on the number of threads.
        threads = (config.threads or torch.get_num_threads()) if device.type == "cpu" else None
        settings = {**asdict(config), "threads": threads, "device": device.type}
        del settings["max_seconds"]
        return cls(settings=json.loads(json.dumps(settings)), data_sha256=hash_data(data))

    def differences(self, other: RunIdentity) -> Iterator[str]:
        """Yield a line for each difference, `self` being the present run."""
        mine, theirs = _flat(self.settings), _flat(other.settings)
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                yield f"{name}: {mine.get(name)} now, {theirs.get(name)} in the broken run"
        if self.data_sha256 != other.data_sha256:
            yield "the images, their labels or their split are not those of the broken run"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingState:
    """A run between two steps."""

    step: int
    seconds: float
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Any]
    generator: Tensor
    torch_generator: Tensor
    history: History
    best: Best | None

    @classmethod
    def of(
        cls,
        model: UNet,
        average: UNet,
        optimiser: torch.optim.Optimizer,
        generator: Generator,
        *,
        history: History,
        best: Best | None,
        seconds: float,
    ) -> TrainingState:
        """Return the state of a run; it refers to the run's tensors, so save it before the next step."""
        return cls(
            step=len(history.losses),
            seconds=seconds,
            model=model.state_dict(),
            average=average.state_dict(),
            optimiser=optimiser.state_dict(),
            generator=generator.get_state(),
            torch_generator=_dropout_state(model),
            history=history,
            best=best,
        )

    def restore(self, model: UNet, average: UNet, optimiser: torch.optim.Optimizer, generator: Generator) -> None:
        """Put the run back to where it was."""
        model.load_state_dict(self.model)
        average.load_state_dict(self.average)
        optimiser.load_state_dict(self.optimiser)
        generator.set_state(self.generator)
        device = _device_of(model)
        if device.type == "cuda":
            torch.cuda.set_rng_state(self.torch_generator, device)
        else:
            torch.set_rng_state(self.torch_generator)


def save_state(path: Path, state: TrainingState, identity: RunIdentity) -> None:
    """Write the state, whole or not at all; the file that was there stays until then.

    Raises
    ------
    NoSpaceError
        If the disk is full.
    """
    content = {
        STATE_KEY: STATE_VERSION,
        "identity": json.dumps(asdict(identity)),
        "history": json.dumps(asdict(state.history)),
        "best": None if state.best is None else json.dumps(_best_object(state.best)),
        "best_weights": None if state.best is None else state.best.weights,
        "seconds": state.seconds,
        "model": state.model,
        "average": state.average,
        "optimiser": state.optimiser,
        "generator": state.generator,
        "torch_generator": state.torch_generator,
    }
    write_torch_file(path, content)


def load_state(path: Path, identity: RunIdentity) -> TrainingState:
    """Read the state of a run with this identity.

    Raises
    ------
    ModelNotFoundError
        If there is no file.
    CheckpointError
        If the file is damaged, is no training state, or is of another run; the message names what differs.
    """
    if not path.is_file():
        raise ModelNotFoundError(
            f"there is no training to resume: {path} does not exist",
            "a run writes it at its first validation",
            fix="train without --resume",
        )
    content = load_plain(path, fix=_FIX)
    if not isinstance(content, dict) or content.get(STATE_KEY) != STATE_VERSION:
        raise CheckpointError(f"{path} is no training state of this release, version {STATE_VERSION}", fix=_FIX)
    try:
        broken, state = RunIdentity(**json.loads(content["identity"])), _state(content)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged: it is a training state with parts missing or changed",
            f"{type(error).__name__}: {error}",
            fix=_FIX,
        ) from error
    differences = list(identity.differences(broken))
    if differences:
        raise CheckpointError(
            f"{path} is of another run: {len(differences)} difference(s)",
            *differences,
            fix="give the settings and data of the broken run, or train anew without --resume",
        )
    return state


def _state(content: dict[str, Any]) -> TrainingState:
    history = json.loads(content["history"])
    best = None if content["best"] is None else json.loads(content["best"])
    return TrainingState(
        step=len(history["losses"]),
        seconds=content["seconds"],
        model=content["model"],
        average=content["average"],
        optimiser=content["optimiser"],
        generator=content["generator"],
        torch_generator=content["torch_generator"],
        history=History(losses=history["losses"], validations=[_validation(v) for v in history["validations"]]),
        best=None
        if best is None
        else Best(validation=_validation(best["validation"]), seconds=best["seconds"], weights=content["best_weights"]),
    )


def hash_data(data: TrainingData) -> str:
    """Return a sha256 over all that training and validation take from the data."""
    digest = hashlib.sha256()
    constants = (data.classes, data.mean, data.std, data.class_pixels, data.percentiles, data.cell_class)
    digest.update(json.dumps(constants).encode())
    for role in (data.training, data.validation):
        digest.update(json.dumps(len(role)).encode())  # the split, not only the order
        for annotated in role:
            digest.update(json.dumps((annotated.stem, annotated.image.shape, annotated.grey_range)).encode())
            for array in (annotated.image, annotated.label, annotated.cells, annotated.instances, annotated.ignored):
                digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()


def _best_object(best: Best) -> dict[str, Any]:
    return {"validation": asdict(best.validation), "seconds": best.seconds}


def _validation(record: dict[str, Any]) -> Validation:
    scores = tuple(Score(stem=s["stem"], values=s["values"]) for s in record["scores"])
    return Validation(step=record["step"], values=record["values"], scores=scores)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _device_of(model: UNet) -> torch.device:
    return next(model.parameters()).device


def _dropout_state(model: UNet) -> Tensor:
    device = _device_of(model)
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
