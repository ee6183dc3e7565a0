"""Flags that several verbs share, and how their texts become values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unet_deploy.errors import ConfigurationError, TileNotLegalError, UsageError

if TYPE_CHECKING:
    from unet_deploy.runtime.artifact import Artifact
    from unet_deploy.runtime.follow import Following
    from unet_deploy.runtime.region import Region

MODEL_VARIABLE = "UNET_DEPLOY_MODEL"
LOCAL_MODEL = Path("model.onnx")
FOLLOW_TIMEOUT_S = 600

VolumeArgument = Annotated[
    Path, typer.Argument(metavar="VOLUME", help="OME-Zarr, plate, Zarr array or TIFF file; a path or an address.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        metavar="FILE|NAME",
        help="Model file (.onnx, or .engine for a plan), or the name of a bundled network, such as membrane. "
        f"Default: ${MODEL_VARIABLE}, ./{LOCAL_MODEL}, or the bundled membrane.",
    ),
]
TrustEngineOption = Annotated[
    bool,
    typer.Option(
        "--trust-engine",
        help="Load an engine plan that was not built by you here. A plan is native code: it can do anything.",
    ),
]
ChannelOption = Annotated[
    list[str] | None,
    typer.Option("--channel", metavar="N|NAME", help="Channel to give the model; repeat for several, in its order."),
]
AxesOption = Annotated[
    str | None, typer.Option("--axes", metavar="NAMES", help="Axis names of a bare Zarr array, e.g. czyx.")
]
ImageOption = Annotated[
    str | None,
    typer.Option("--image", metavar="NAME", help="Which image of a plate, a series or a TIFF file, e.g. A/1/0."),
]
LevelOption = Annotated[int, typer.Option("--level", min=0, help="Pyramid level; 0 is full resolution.")]
FittingLevelOption = Annotated[
    int | None,
    typer.Option(
        "--level",
        min=0,
        help="Pyramid level; 0 is full resolution. Default: that with pixels of the size the model was trained at.",
    ),
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="AXIS=FROM:TO,...",
        help="Only the blocks that touch it, e.g. z=0:10,y=512:1024. The next command goes on with the rest.",
    ),
]
PlaneOption = Annotated[
    int | None, typer.Option("--plane", min=0, metavar="Z", help="Only the blocks of this plane: --region z=Z:Z+1.")
]
TileOption = Annotated[
    str | None,
    typer.Option(
        "--tile", metavar="SIDE|Y,X", help="Input side of a tile in px (16·k − 4 at depth 4). Default: planned."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Tiles per forward pass.")]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="What this process may hold, e.g. 4GB: tile, block and cache are planned so.",
    ),
]
TtaOption = Annotated[
    bool, typer.Option("--tta", help="Average over the 8 turned and mirrored forms of each tile: 8 times the work.")
]
InputRangeOption = Annotated[
    str | None,
    typer.Option(
        "--input-range",
        metavar="LOW:HIGH",
        help="Grey values of the volume that mean the ends of the model's range, e.g. 0:4095. "
        "For a model that measures percentiles of each volume, these take their place: one scale for a whole series.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", help="auto, cpu, cuda or cuda:i; what is named is used or fails. auto: a GPU, else the CPU."
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="onnxruntime-cpu, openvino, onnxruntime-cuda, tensorrt or tensorrt-rtx, to insist on one. "
        "Default: the device's first that is installed and passes the model's test; on a CPU by measured speed.",
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=0, help="CPU threads of the network; 0: one a core.")]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        help="Write what each thread did when: a page to look at (.html), or trace events for Perfetto (.json); "
        "of a plate, a file for each image.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def parse_tile(text: str | None) -> tuple[int, int] | None:
    """Return (y, x) from ``572`` or ``572,700``.

    Raises
    ------
    TileNotLegalError
        If it is not one or two whole numbers. Whether the network can take them is the plan's to say.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 2) or not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts):
        raise TileNotLegalError(
            f"--tile {text} came, a side or two sides y,x in pixels were expected",
            "for the paper's network a side is 16·k − 4",
            fix="--tile 572, or --tile 572,700",
        )
    return int(parts[0]), int(parts[-1])


def parse_size(text: str | None, *, flag: str) -> int | None:
    """Return the bytes that a size such as ``4GB`` or ``512 MiB`` means.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    if text is None:
        return None
    parts = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([kMGT]i?)?B\s*", text, re.IGNORECASE)
    if parts is None:
        raise ConfigurationError(
            f"{flag} {text} came, a size with its unit was expected",
            "units are B, kB, MB, GB and TB, or KiB, MiB, GiB and TiB",
            fix=f"{flag} 4GB",
        )
    prefix = (parts[2] or "").lower()
    base = 1024 if prefix.endswith("i") else 1000
    return int(float(parts[1]) * base ** " kmgt".index(prefix[:1] or " "))


def parse_region(region: str | None, plane: int | None) -> Region | None:
    """Return the part of a volume that --region or --plane mean; None for all of it.

    Raises
    ------
    UsageError
        If both came, or the region cannot be meant.
    """
    from unet_deploy.runtime.region import parse_region as parse

    if region is not None and plane is not None:
        rest = [part for part in region.split(",") if not part.strip().startswith("z")]
        raise UsageError(
            f"--region {region} and --plane {plane} came together",
            fix=f"say it in one: --region {','.join([f'z={plane}', *rest])}",
        )
    text = f"z={plane}:{plane + 1}" if plane is not None else region
    return None if text is None else parse(text)


def parse_following(is_asked: bool, *, timeout_s: float | None, until_complete: bool, grows: bool) -> Following | None:
    """Return how a volume is followed, None where it is not.

    Raises
    ------
    UsageError
        If flags of following came without --follow, or cannot be meant together.
    """
    from unet_deploy.runtime.follow import Following

    if not is_asked:
        came = [
            *([f"--follow-timeout {timeout_s:g}"] if timeout_s is not None else []),
            *(["--until-complete"] if until_complete else []),
            *(["--grows"] if grows else []),
        ]
        if came:
            raise UsageError(
                f"{' and '.join(came)} came without --follow",
                "the volume is taken to be finished, unless it is followed",
                fix=f"--follow {' '.join(came)}",
            )
        return None
    if until_complete and timeout_s is not None:
        raise UsageError(
            f"--follow-timeout {timeout_s:g} and --until-complete came together",
            "the one stops when nothing comes, the other never",
            fix="leave one of them out",
        )
    if timeout_s is None:
        timeout_s = FOLLOW_TIMEOUT_S
    return Following(timeout_s=None if until_complete else timeout_s, grows=grows)


def require_objects_wanted(write: Sequence[str] | None, settings: Mapping[str, bool]) -> None:
    """Refuse settings of objects where no objects are numbered.

    Parameters
    ----------
    write
        What is to be written.
    settings
        By flag, whether it was given.

    Raises
    ------
    UsageError
        If any was, in vain.
    """
    came = [flag for flag, given in settings.items() if given]
    if came and "instances" not in (write or ()):
        raise UsageError(
            f"{' and '.join(came)} came without --write instances",
            "no objects are numbered, so nothing would come of it",
            fix="--write labels --write instances",
        )


def parse_input_range(text: str | None) -> tuple[float, float] | None:
    """Return (low, high) from ``0:4095``.

    Raises
    ------
    ConfigurationError
        If it is not two numbers.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(text)
    except ValueError as error:
        raise ConfigurationError(
            f"--input-range {text} came, LOW:HIGH was expected",
            "the volume's grey values that mean the ends of the model's value range",
            fix="--input-range 0:4095",
        ) from error
    return low, high


def load_model(
    option: Path | None, environment: Mapping[str, str] = os.environ, *, trust_engine: bool = False
) -> Artifact:
    """Return the model to use: --model, the environment's, ./model.onnx, or the bundled one, said aloud."""
    from unet_deploy.runtime.artifact import is_bundled, load_artifact, load_bundled_artifact
    from unet_deploy.runtime.planned import load_model as load_any

    if option is not None:
        artifact = load_any(option, is_trusted=trust_engine)
        if is_bundled(option):
            _say_bundled(artifact)
        return artifact
    if named := environment.get(MODEL_VARIABLE):
        typer.echo(f"model: {named} (from ${MODEL_VARIABLE})", err=True)
        return load_any(named, is_trusted=trust_engine)
    if LOCAL_MODEL.is_file():
        typer.echo(f"model: ./{LOCAL_MODEL}", err=True)
        return load_artifact(LOCAL_MODEL)
    artifact = load_bundled_artifact()
    _say_bundled(artifact)
    return artifact


def _say_bundled(artifact: Artifact) -> None:
    typer.echo(f"model: the bundled {artifact.card.name}, trained on: {artifact.card.training.data}", err=True)
    typer.echo(f"       {artifact.card.training.licence}", err=True)
