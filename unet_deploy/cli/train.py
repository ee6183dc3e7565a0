"""``unet-deploy train``: from two folders of images and labels to a checkpoint.

1. Resolve the recipe: defaults, preset, file, flags. Check it, the output's place and all images before any work.
2. Train; lines of progress go to stderr. The best network so far, all that a resumed run needs, the history and the
   report are written at each validation.
3. Say on stdout what was made, how well it does on the images left out, and what to type next.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli._train_run import ProgressLines, RunFolder, say_data, show_scores
from unet_deploy.errors import InterruptedRunError, UnetDeployError, UsageError
from unet_deploy.training.presets import PRESETS

if TYPE_CHECKING:
    from unet_deploy.card import ModelCard
    from unet_deploy.training import History, Recipe, TrainingData, TrainingReport, TrainingResult, UNet
    from unet_deploy.training.config import Metric


def train(
    images: Annotated[
        Path | None, typer.Argument(help="Grey images: a folder of PNG, TIFF or Zarr, a stack, or a CTC sequence.")
    ] = None,
    labels: Annotated[Path | None, typer.Argument(help="Their labels, alike, with the same file stems.")] = None,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Checkpoint to write; NAME.run beside it holds report and history.")
    ] = Path("model.pt"),
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Recipe: tables data, training, augmentation, about.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Recipe to start from: {', '.join(PRESETS)}.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of a recipe, e.g. training.dropout=0.3; repeat."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the broken training of --output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier training of --output.")] = False,
    label_kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="What a label value is: classes, instances or binary.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=VALUE", help="A class and its label value; repeat, background first."),
    ] = None,
    cell_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="Class whose connected parts are to be kept apart.")
    ] = None,
    foreground: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the objects, of labels that are instances or binary.")
    ] = None,
    ignore: Annotated[int | None, typer.Option(metavar="VALUE", help="Label value that says nothing.")] = None,
    validate: Annotated[
        list[str] | None,
        typer.Option(metavar="STEM", help="Image to validate on; repeat. Default: a tenth, at least one."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="STEM", help="Image to leave out altogether; repeat.")
    ] = None,
    is_stack: Annotated[
        bool | None, typer.Option("--stack/--no-stack", help="Neighbouring images look alike: spread the validation.")
    ] = None,
    gap: Annotated[
        int | None, typer.Option(help="Images left out on either side of a validation image of a stack.")
    ] = None,
    percentiles: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH|none", help="Scale each image by two percentiles of its own.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Number of 2x2 max-poolings.")] = None,
    width: Annotated[int | None, typer.Option(help="Feature channels of the first level; the paper has 64.")] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of a training tile in pixels; smaller needs less memory.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps, of one tile each.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End after this long in all, whatever the step.")] = None,
    optimiser: Annotated[str | None, typer.Option(metavar="NAME", help="adam, or sgd as in the paper.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Rate after the warm-up.")] = None,
    border_weight: Annotated[
        float | None, typer.Option(help="Weight w_0 of the borders between cells; 0 for none, the paper has 10.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:i; what is named is used or fails.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; without it, as many as torch chooses.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; without it, the output's.")] = None,
    data: Annotated[str | None, typer.Option(metavar="TEXT", help="What the images are, for the model card.")] = None,
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Terms of the data and the model.")] = None,
    citation: Annotated[str | None, typer.Option(metavar="TEXT", help="What to cite.")] = None,
    pixel_size_nm: Annotated[
        str | None, typer.Option(metavar="NM or Y,X", help="Pixel size of the images in nanometres.")
    ] = None,
) -> None:
    """Train the paper's U-Net on annotated images and write a checkpoint."""
    from unet_deploy.training import parse_assignment

    flags = {
        "data.images": images,
        "data.labels": labels,
        "data.label_kind": label_kind,
        "data.classes": parse_classes(classes),
        "data.cell_class": cell_class,
        "data.foreground": foreground,
        "data.ignore": ignore,
        "data.validation": tuple(validate) if validate else None,
        "data.exclude": tuple(exclude) if exclude else None,
        "data.is_stack": is_stack,
        "data.gap": gap,
        "data.percentiles": parse_percentiles(percentiles),
        "training.depth": depth,
        "training.base_width": width,
        "training.tile_side": tile,
        "training.steps": steps,
        "training.max_seconds": None if max_minutes is None else 60 * max_minutes,
        "training.optimiser": optimiser,
        "training.learning_rate": learning_rate,
        "training.border_weight": border_weight,
        "training.seed": seed,
        "training.device": device,
        "training.threads": threads,
        "about.name": name,
        "about.data": data,
        "about.licence": licence,
        "about.citation": citation,
        "about.pixel_size_nm": parse_pixel_size(pixel_size_nm),
    }
    given = {key: value for key, value in flags.items() if value is not None}
    given |= dict(parse_assignment(text) for text in assignments or ())
    if resume and overwrite:
        raise UsageError(
            "--resume and --overwrite were given, at most one of them was expected",
            "one goes on with the earlier training, the other replaces it",
            fix="leave one of them out",
        )
    run = RunFolder(output)
    run.check_place()
    goes_on = run.can_resume() if resume else False
    resolved = resolve_recipe(run, recipe, preset=preset, given=given, resume=resume)
    if not resume and not overwrite:
        run.check_new()
    if resume and not goes_on:
        typer.echo(f"{run.path} holds no state yet: starting at step 0", err=True)
    _train(resolved, run, goes_on=goes_on)


def resolve_recipe(
    run: RunFolder, recipe: Path | None, *, preset: str | None, given: dict[str, Any], resume: bool
) -> Recipe:
    """Return the recipe that flags and files make; one resumed is that of the run folder where no other is named."""
    from unet_deploy.training import preset_settings, read_recipe

    default_name = run.output.stem
    if not resume or recipe is not None or not run.recipe.is_file():
        return read_recipe(recipe, preset=preset, overrides=given, name=default_name)
    of_preset = {} if preset is None else preset_settings(preset)  # over the file, which has a value for everything
    overrides = {"training.max_seconds": None, **of_preset, **given}  # the limit was that of the part that has ended
    return read_recipe(run.recipe, overrides=overrides, name=default_name)


def _train(recipe: Recipe, run: RunFolder, *, goes_on: bool) -> None:
    from unet_deploy.geometry import UnetGeometry
    from unet_deploy.training import check_config, default_metric, read_training_data, train_unet
    from unet_deploy.training.device import open_device

    config = recipe.training
    data = read_training_data(recipe.data, smallest_side=UnetGeometry(config.depth).divisor)
    check_config(config, data)
    open_device(config.device)
    say_data(data, is_chosen_here=recipe.data.validation is None, is_stack=recipe.data.is_stack)

    if not recipe.about.description:
        description = f"U-Net of depth {config.depth} and width {config.base_width}"
        recipe = replace(recipe, about=replace(recipe.about, description=description))
    metric = config.best_by or default_metric(data)
    lines, keeper = ProgressLines(), _Keeper(recipe, run, data, metric)
    if not goes_on:  # a run goes on in its own folder, and its state may yet refuse this recipe
        keeper.begin(is_new=True)
    try:
        result = train_unet(
            data,
            config,
            about=recipe.about,
            state_path=run.state,
            resume=goes_on,
            on_progress=lines,
            on_best=keeper.save_best,
            on_validation=keeper.write_down,
        )
    except KeyboardInterrupt as stop:
        keeper.stop("interrupted")
        raise _interruption(run, lines.step) from stop
    except UnetDeployError as error:
        keeper.stop(error.headline)
        raise
    keeper.finish(result)
    _say_result(result, run, metric)


class _Keeper:
    """Writes down a training while it runs."""

    def __init__(self, recipe: Recipe, run: RunFolder, data: TrainingData, metric: Metric) -> None:
        self.recipe, self.run, self.data, self.metric = recipe, run, data, metric
        self.report: TrainingReport | None = None

    def begin(self, *, is_new: bool) -> TrainingReport:
        """Make the run folder with the recipe, its paths made absolute, and the report."""
        from unet_deploy.training import TrainingReport, recipe_to_toml

        places = self.recipe.data
        places = replace(places, images=places.images.absolute(), labels=places.labels.absolute())
        self.run.begin(recipe_to_toml(replace(self.recipe, data=places)), is_new=is_new)
        self.report = TrainingReport(
            self.run.report,
            data=self.data,
            config=self.recipe.training,
            metric=self.metric,
            title=self.recipe.about.name,
        )
        if is_new:
            self.report.start()
        return self.report

    def save_best(self, model: UNet, card: ModelCard) -> None:
        """Write the checkpoint; nobody else's is there, or it may be replaced."""
        from unet_deploy.training import save_checkpoint

        save_checkpoint(self.run.output, model=model, card=card, overwrite=True)

    def write_down(self, model: UNet, history: History) -> None:
        """Write history and report."""
        self.run.write_history(history)
        (self.report or self.begin(is_new=False)).update(model, history)

    def finish(self, result: TrainingResult) -> None:
        """Leave checkpoint and report of the best network, whatever a broken run left."""
        self.save_best(result.model, result.card)
        (self.report or self.begin(is_new=False)).finish(result)

    def stop(self, reason: str) -> None:
        """Say in the report why there is no more; one that this run has not written stays as it is."""
        if self.report is not None:
            self.report.stop(reason)


def _say_result(result: TrainingResult, run: RunFolder, metric: Metric) -> None:
    seconds = max(result.seconds, 1e-9)
    typer.echo(f"{result.steps} steps in {result.seconds:.0f} s: {result.steps / seconds:.2f} images/s", err=True)
    typer.echo(f"wrote {run.output}: {result.best.step} of {result.steps} steps were best, {result.seconds:.0f} s")
    typer.echo(f"validation: {show_scores(result.best)} (best by {metric})")
    typer.echo(f"report: {run.report}")
    typer.echo(f"next: unet-deploy export {run.output}")


def _interruption(run: RunFolder, step: int) -> InterruptedRunError:
    kept = f"{run.state} holds the last validation; the steps after it are done again"
    return InterruptedRunError(
        f"interrupted after step {step}",
        kept if run.state.is_file() else "there was no validation yet, so it will start again at step 0",
        fix=f"go on with: {run.resume_command}",
    )


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


def parse_percentiles(text: str | None) -> tuple[float, float] | str | None:
    """Turn ``1,99.8`` into two percentiles; ``none`` stands for no scaling, against a preset's.

    Raises
    ------
    UsageError
        If it is not two numbers of 0 to 100, the lower first.
    """
    if text is None or text == "none":
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not 0 <= low < high <= 100:
        raise UsageError(
            f"--percentiles {text!r} is not LOW,HIGH with 0 <= LOW < HIGH <= 100",
            "each image is scaled by the grey values at these two of its percentiles",
            fix="--percentiles 1,99.8  or  --percentiles none",
        )
    return low, high


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
