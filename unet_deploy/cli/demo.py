"""``unet-deploy demo``: the main job, whole, on a volume that the program draws itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli._report import show_progress
from unet_deploy.cli._summary import show_result
from unet_deploy.errors import OutputExistsError, OutputPathError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from unet_deploy.card import ModelCard

VOXEL_NM = (50.0, 4.0, 4.0)
"""Of the ISBI 2012 stack, which the bundled network was trained on."""
PANEL_SIDE = 512


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to put everything.")] = Path(
        "unet-deploy-demo"
    ),
    size: Annotated[int, typer.Option("--size", min=64, max=16384, help="Side of a plane in px.")] = 1024,
    planes: Annotated[int, typer.Option("--planes", min=1, max=64, help="Number of planes.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another volume.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Draw an EM-like volume, segment it with the bundled network, and show the result as a picture."""
    from unet_deploy.runtime.artifact import load_bundled_artifact
    from unet_deploy.runtime.pipeline import segment
    from unet_deploy.sample import em_like_volume_with_truth

    volume, result_path, picture = output / "volume.ome.zarr", output / "segmentation.ome.zarr", output / "overlay.png"
    _require_place(output, volume, overwrite=overwrite)
    artifact = load_bundled_artifact()
    typer.echo(f"drawing a procedural EM-like volume of {planes} × {size} × {size} px", err=True)
    sample = em_like_volume_with_truth(shape=(planes, size, size), seed=seed)
    output.mkdir(exist_ok=True)
    write_volume(volume, sample.image)
    with show_progress() as progress:
        result = segment(volume, model=artifact, output=result_path, overwrite=overwrite, progress=progress)
    labels, probability = _read_result(result_path)
    _draw(picture, sample.image[0], labels[0], probability[0], artifact.card)
    wrong = float((labels.astype(bool) != sample.membrane).mean())
    show_result(result)
    typer.echo(f"truth   {wrong:.1%} of pixels differ from what was drawn")
    typer.echo(f"look    {picture}")


def write_volume(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write (z, y, x) as a one-level OME-Zarr 0.5; an earlier one at `path` is replaced."""
    import zarr

    from unet_deploy.runtime.ome import LevelTransform, multiscales_attributes

    attributes = multiscales_attributes(
        version="0.5",
        name="em-like",
        axes="zyx",
        units=("nanometer",) * 3,
        levels=[LevelTransform(path="0", scale=VOXEL_NM, translation=(0.0, 0.0, 0.0))],
        type_="mean",
    )
    root: Any = zarr.create_group(str(path), zarr_format=3, attributes=attributes, overwrite=True)
    root.create_array(
        "0", data=image, chunks=(1, *(min(side, 512) for side in image.shape[1:])), dimension_names=list("zyx")
    )


def _require_place(output: Path, volume: Path, *, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise OutputPathError(
            f"the folder of {output} does not exist",
            "the demo was to make its folder there",
            fix="create it, or choose another --output",
        )
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not volume.is_dir()):
        raise OutputPathError(
            f"{output} is not the folder of an earlier demo",
            "the demo writes into a new or empty folder",
            fix="choose another --output",
        )
    if volume.exists() and not overwrite:
        raise OutputExistsError(
            f"{output} holds an earlier demo", "nothing was written", fix="--overwrite, or another --output"
        )


def _read_result(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return labels (z, y, x) and the last class's probability (z, y, x)."""
    import numpy as np
    import zarr

    labels: Any = zarr.open_array(str(path), path="labels/segmentation/0", mode="r")
    probabilities: Any = zarr.open_array(str(path), path="0", mode="r")
    return np.asarray(labels[:]), np.asarray(probabilities[-1])


def _draw(
    path: Path,
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.uint8],
    card: ModelCard,
) -> None:
    """Write image, membrane probability and overlay side by side, as large as PANEL_SIDE each."""
    from unet_deploy.picture import heat, overlay, side_by_side, to_display, write_png

    part = (slice(None, PANEL_SIDE), slice(None, PANEL_SIDE))
    grey = to_display(image[part])
    colours = [c.colour for c in card.classes]
    write_png(path, side_by_side([grey, heat(probability[part]), overlay(grey, labels[part], colours)]))
