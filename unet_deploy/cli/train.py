"""``unet-deploy train``: from two folders of images and labels to a checkpoint.

1. Turn the flags into settings; check them, the output's place and all images before any work.
2. Train; lines of progress go to stderr; each best network so far is written at once.
3. Say on stdout what was made, how well it does on the images left out, and what to type next.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unet_deploy.errors import UsageError

if TYPE_CHECKING:
    from unet_deploy.card import ModelCard
    from unet_deploy.training import Progress, TrainingData, UNet, Validation

PROGRESS_EVERY_S = 10.0


def train(
    images: Annotated[Path, typer.Argument(help="Folder of grey PNG or TIFF images.")],
    labels: Annotated[Path, typer.Argument(help="Folder of labels: the same file stems, one value per class.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path("model.pt"),
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=VALUE", help="A class and its label value; repeat, background first."),
    ] = None,
    validate: Annotated[
        list[str] | None,
        typer.Option(metavar="STEM", help="Image to validate on; repeat. Without it: the last tenth, at least one."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="STEM", help="Image to leave out altogether; repeat.")
    ] = None,
    depth: Annotated[int, typer.Option(help="Number of 2x2 max-poolings.")] = 4,
    width: Annotated[int, typer.Option(help="Feature channels of the first level; the paper has 64.")] = 16,
    steps: Annotated[int, typer.Option(help="Training steps, of one tile each.")] = 2000,
    max_minutes: Annotated[float | None, typer.Option(help="End after this long, whatever the step.")] = None,
    tile: Annotated[int, typer.Option(help="Side of a training tile in pixels; smaller needs less memory.")] = 572,
    learning_rate: Annotated[float, typer.Option(help="Adam's rate after the warm-up.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; without it, as many as torch chooses.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; without it, the output's.")] = None,
    data: Annotated[str, typer.Option(metavar="TEXT", help="What the images are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(metavar="TEXT", help="Terms of the data and the model.")] = "",
    citation: Annotated[str, typer.Option(metavar="TEXT", help="What to cite.")] = "",
    pixel_size_nm: Annotated[
        str | None, typer.Option(metavar="NM or Y,X", help="Pixel size of the images in nanometres.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Train the paper's U-Net on annotated images and write a checkpoint."""
    from unet_deploy.geometry import Geometry
    from unet_deploy.training import About, TrainingConfig, read_training_data, save_checkpoint, train_unet
    from unet_deploy.training.checkpoint import check_output

    geometry = Geometry(depth)
    config = TrainingConfig(
        depth=depth,
        base_width=width,
        tile_side=geometry.require_legal(tile, axis="y and x"),
        steps=steps,
        max_seconds=None if max_minutes is None else 60 * max_minutes,
        seed=seed,
        threads=threads,
        learning_rate=learning_rate,
    )
    about = About(
        name=output.stem if name is None else name,
        description=f"U-Net of depth {depth} and width {width}",
        data=data,
        licence=licence,
        citation=citation,
        pixel_size_nm=parse_pixel_size(pixel_size_nm),
    )
    check_output(output, overwrite=overwrite)
    checked = read_training_data(
        images,
        labels,
        classes=parse_classes(classes),
        validation=validate,
        exclude=exclude or (),
        smallest_side=geometry.divisor,
    )
    _say_data(checked, is_chosen_here=validate is None)

    def save_best(model: UNet, card: ModelCard) -> None:
        save_checkpoint(output, model=model, card=card, overwrite=True)

    result = train_unet(checked, config, about=about, on_progress=_ProgressLines(), on_best=save_best)
    typer.echo(f"wrote {output}: {result.best.step} of {result.steps} steps were best, {result.seconds:.0f} s")
    typer.echo(f"validation: {_show_validation(result.best)}")
    typer.echo(f"next: unet-deploy export {output}")


def parse_classes(items: list[str] | None) -> dict[str, int] | None:
    """Turn ``NAME=VALUE`` items into an ordered mapping.

    >>> parse_classes(["cell interior=255", "membrane=0"])
    {'cell interior': 255, 'membrane': 0}

    Raises
    ------
    UsageError
        If an item is not NAME=VALUE with a whole number, or a name occurs twice.
    """
    if not items:
        return None
    classes: dict[str, int] = {}
    for item in items:
        name, separator, value = item.rpartition("=")
        if not separator or not name.strip() or not value.strip().lstrip("-").isdecimal():
            raise UsageError(
                f"--class {item!r} is not NAME=VALUE with a whole number",
                "VALUE is the grey value of the class in the label images",
                fix="--class 'cell interior=255' --class membrane=0",
            )
        if name.strip() in classes:
            raise UsageError(f"--class {name.strip()!r} is given twice", fix="give every class one name and value")
        classes[name.strip()] = int(value)
    return classes


def parse_pixel_size(text: str | None) -> tuple[float, float] | None:
    """Turn ``4`` or ``4,4.5`` into the (y, x) size in nanometres.

    Raises
    ------
    UsageError
        If it is not one or two positive numbers.
    """
    if text is None:
        return None
    try:
        sizes = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or not all(0 < size < float("inf") for size in sizes):
        raise UsageError(
            f"--pixel-size-nm {text!r} is not one or two positive numbers",
            "one number for square pixels, or Y,X",
            fix="--pixel-size-nm 4  or  --pixel-size-nm 4,4.5",
        )
    return sizes[0], sizes[-1]


def _say_data(data: TrainingData, *, is_chosen_here: bool) -> None:
    stems = ", ".join(image.stem for image in data.validation)
    why = " (the last tenth; choose with --validate)" if is_chosen_here else ""
    total = sum(data.class_pixels)
    shares = ", ".join(f"{name} {n / total:.1%}" for name, n in zip(data.classes, data.class_pixels, strict=True))
    typer.echo(f"training on {len(data.training)} images of {data.dtype}: {shares}", err=True)
    typer.echo(f"validating on {stems}{why}", err=True)
    if data.excluded:
        typer.echo(f"leaving out {', '.join(data.excluded)}", err=True)


def _show_validation(validation: Validation) -> str:
    shown = [f"{s.stem}: {s.disagreement:.2%} of pixels differ, Dice {s.dice:.3f}" for s in validation.scores]
    return "; ".join(shown)


class _ProgressLines:
    """Writes a line every few seconds and at every validation."""

    def __init__(self) -> None:
        self.last_s = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.validation is None and progress.elapsed_s - self.last_s < PROGRESS_EVERY_S:
            return
        self.last_s = progress.elapsed_s
        line = (
            f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  rate {progress.learning_rate:.2e}  "
            f"{progress.elapsed_s / progress.step:.2f} s/step  {progress.eta_s / 60:.1f} min left"
        )
        if progress.validation is not None:
            line += f"  |  {_show_validation(progress.validation)}"
        typer.echo(line, err=True)
