"""Training checkpoints: the weights and the model card in one torch file that holds no code.

1. `save_checkpoint` writes ``{"unet_deploy_checkpoint": 1, "card": JSON text, "weights": state dict}`` beside the
   path, then replaces: a reader sees the old file or the new one, never a half.
2. `load_checkpoint` looks at the archive's table of contents first, so that what is not ours is named.
3. It then loads with ``weights_only=True``: tensors and plain values, nothing that runs.
4. The weights' names, shapes and dtypes must be exactly those of the card's network, before any memory is taken for it.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet_deploy.card import ModelCard
from unet_deploy.card_json import dump_card, parse_card
from unet_deploy.errors import CheckpointError, ModelNotFoundError, NoSpaceError, OutputExistsError, OutputPathError
from unet_deploy.training.network import UNet

CHECKPOINT_KEY = "unet_deploy_checkpoint"
CHECKPOINT_VERSION = 1
_MAX_PROBLEMS_SHOWN = 8
_FIX = "use a file written by `unet-deploy train`"


def check_output(path: Path, *, overwrite: bool) -> None:
    """Say before any work whether a checkpoint can be written to `path`.

    Raises
    ------
    OutputExistsError
        If something is there and `overwrite` is false.
    OutputPathError
        If the path is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise OutputPathError(f"{path} is a folder, a file was expected", fix=f"--output {path / 'model.pt'}")
    if not path.parent.is_dir():
        raise OutputPathError(f"there is no folder {path.parent} to write {path.name} to", fix="make the folder first")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already", fix="choose another --output, or add --overwrite")


def save_checkpoint(path: Path, *, model: UNet, card: ModelCard, overwrite: bool = False) -> None:
    """Write the model's weights and its card, whole or not at all.

    Parameters
    ----------
    path
        Where to; conventionally ``NAME.pt``.
    model, card
        The network, and the card that describes it.
    overwrite
        Whether a file at `path` may be replaced.

    Raises
    ------
    OutputExistsError, OutputPathError
        As `check_output`.
    """
    check_output(path, overwrite=overwrite)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = {CHECKPOINT_KEY: CHECKPOINT_VERSION, "card": dump_card(card), "weights": weights}
    write_torch_file(path, content)


def write_torch_file(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values as a torch file, whole or not at all; what was there stays until then.

    Raises
    ------
    NoSpaceError
        If the disk, the quota or the greatest size of a file is used up.
    """
    buffer = io.BytesIO()  # torch names the archive after a file, and a temporary name is nobody's business
    torch.save(content, buffer)
    temporary = path.with_name(f".{path.name}.part")  # one name, so that what a kill left is replaced
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NoSpaceError(
            f"the disk is full: {path.name} needs {buffer.getbuffer().nbytes / 2**20:.1f} MiB",
            f"it was to be written to {path.parent}; what stood there before is whole",
            fix="free some space and go on with --resume",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> tuple[UNet, ModelCard]:
    """Read a checkpoint of ours; nothing in the file is ever executed.

    Returns
    -------
    tuple of UNet and ModelCard
        The network in evaluation mode on the CPU, and its card.

    Raises
    ------
    ModelNotFoundError
        If there is no file at `path`.
    CheckpointError
        If it is no torch archive, is truncated, is an exported program, TorchScript, a pickled module, another
        program's checkpoint or of another version, or if the weights are not those of the card's network.
    CardError
        If the card cannot be read.
    """
    _require_archive(path)
    content = load_plain(path, fix=_FIX)
    card, weights = _split(content, path)
    with torch.device("meta"):  # shapes only: a card that asks for terabytes costs nothing
        model = UNet(
            depth=card.unet.depth,
            base_width=card.unet.base_width,
            in_channels=card.network.in_channels,
            classes=card.network.classes,
        )
    _require_weights(model, weights, path)
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_().eval(), card


def _require_archive(path: Path) -> None:
    if not path.is_file():
        raise ModelNotFoundError(f"there is no checkpoint file {path}", fix=f"check the path, or {_FIX}")
    with path.open("rb") as file:
        start = file.read(4)
    if not _is_zip(path):
        if start[:2] == b"PK":
            raise CheckpointError(
                f"{path} is truncated or damaged: it starts as a torch file, but its end is missing",
                f"it has {path.stat().st_size} bytes",
                fix="copy the file again, or train again",
            )
        what = "a bare pickle or an old torch file" if start[:1] == b"\x80" else f"a file that starts with {start!r}"
        raise CheckpointError(f"{path} is {what}, a checkpoint of `unet-deploy train` was expected", fix=_FIX)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except Exception as error:  # as in load_plain
        raise _damage_error(path, error) from error
    if "models/model.json" in names or "serialized_exported_program.json" in names:
        what = "an exported program (torch.export, .pt2)"
    elif "constants.pkl" in names or any(name.startswith("code/") for name in names):
        what = "TorchScript, which holds code"
    elif "data.pkl" not in names:
        what = "a zip file that torch did not write"
    else:
        return
    raise CheckpointError(f"{path} is {what}; a checkpoint of `unet-deploy train` was expected", fix=_FIX)


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of some damaged ones it says so itself
        return True


def load_plain(path: Path, *, fix: str) -> Any:
    """Read a torch file of tensors and plain values; anything else in it is refused, never run.

    Raises
    ------
    CheckpointError
        If the file is damaged, by the checksums in it too, inflates beyond itself, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_stored(archive, path)
            # Torch reads past a wrong checksum, and takes an entry marked as a folder for one full of zeros.
            wrong = archive.testzip() or next((i.filename for i in archive.infolist() if i.external_attr & 0x10), None)
        content = None if wrong else torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled objects; loading them could run code, so it is refused",
            "a whole module saved with torch.save(model) is such a file; a checkpoint holds tensors and text only",
            fix=f"{fix}, or save model.state_dict() where the file was made",
        ) from error
    except Exception as error:  # damaged bytes make zipfile and torch raise nearly anything
        raise _damage_error(path, error) from error
    if wrong:
        raise CheckpointError(
            f"{path} is damaged: {wrong} in it is not as it was written", fix="copy the file again, or train again"
        )
    return content


def _require_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive that would take more memory than disk: torch stores what it writes, it never compresses."""
    inflated, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if inflated > size:
        raise CheckpointError(
            f"{path} inflates beyond itself: its {size:,} bytes declare {inflated:,}",
            "torch does not compress what it writes, so this file was made to fill the memory",
            fix="do not trust this file; use one written by `unet-deploy train`",
        )


def _damage_error(path: Path, error: Exception) -> CheckpointError:
    reason = next(iter(str(error).splitlines()), "no reason given")
    return CheckpointError(
        f"{path} is damaged: torch cannot read it", f"{type(error).__name__}: {reason}", fix="copy the file again"
    )


def _split(content: Any, path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        keys = ", ".join(map(repr, list(content)[:3])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is another program's torch file: the key {CHECKPOINT_KEY!r} is missing",
            f"it holds {keys or 'nothing'}",
            "weights alone do not say how the network was trained, so they cannot become an artifact",
            fix=_FIX,
        )
    version = content[CHECKPOINT_KEY]
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"checkpoint version {version!r} came, this release reads version {CHECKPOINT_VERSION}",
            f"in {path}",
            fix="use the unet-deploy release that wrote it",
        )
    text, weights = content.get("card"), content.get("weights")
    unknown = sorted(map(str, content.keys() - {CHECKPOINT_KEY, "card", "weights"}))
    tensors = isinstance(weights, dict) and all(isinstance(v, Tensor) for v in weights.values())
    if not isinstance(text, str) or not tensors or unknown:
        raise CheckpointError(
            f"{path} does not hold exactly a card (text) and weights (tensors)",
            f"card: {type(text).__name__}, weights: {type(weights).__name__}, unknown keys: {unknown}",
            fix="train again with this release",
        )
    assert isinstance(weights, dict)
    return parse_card(text, source=str(path)), weights


def _require_weights(model: UNet, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    problems = [f"{name}: missing" for name in expected if name not in weights]
    problems += [f"{name}: unknown" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        came, wanted = weights[name], expected[name]
        if came.shape != wanted.shape or came.dtype != wanted.dtype:
            problems.append(
                f"{name}: {came.dtype} {tuple(came.shape)} came, {wanted.dtype} {tuple(wanted.shape)} was expected"
            )
        elif not bool(torch.isfinite(came).all()):
            problems.append(f"{name}: holds NaN or infinity")
    if problems:
        shown = sorted(problems)[:_MAX_PROBLEMS_SHOWN]
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise CheckpointError(
            f"the weights in {path} are not those of the network its card describes",
            *shown,
            *more,
            fix="train again; card and weights of one file belong together",
        )
