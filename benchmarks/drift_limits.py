"""How far images of one kind and of others lie from a model's training images: what the limits of drift rest on.

    python benchmarks/drift_limits.py

Both bundled networks' cards are compared with the ISBI 2012 stacks (electron microscopy), with the images of the 2018
Data Science Bowl and of StarDist (fluorescence), whole and image by image, with ISBI images that were inverted,
brightened or flattened, and with crops. Of each comparison: the earth mover's distances, the mirrored one, the span,
and the share of pixels at the ends, as least, median and most; and how often something was found. Needs the data at
../shared/data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from common import ISBI_TEST, save
from skimage.io import imread

from unet_deploy.card import ModelCard
from unet_deploy.runtime import load_artifact
from unet_deploy.runtime._grey_drift import FEWEST_VALUES
from unet_deploy.runtime._grey_reference import SPAN, Reference, percentile_of
from unet_deploy.runtime.drift import VolumeFacts, compare_with_training
from unet_deploy.runtime.grey_values import count_grey_values

DATA = ISBI_TEST.parent.parent
CROPS = (32, 64, 128, 256)
SCALING = (1.0, 99.8)
Images = Sequence[npt.NDArray[Any]]


def main() -> None:
    train = [imread(file) for file in sorted((DATA / "isbi2012" / "train" / "image").glob("*.png"))]
    test = [imread(file) for file in sorted(ISBI_TEST.glob("*.png"))]
    bowl = [imread(file) for file in sorted((DATA / "dsb2018" / "images").glob("*.png"))]
    stardist = [imread(DATA / "stardist" / name) for name in ("img2d.tif", "dsb_img2d_old.tif", "img3d.tif")]
    sets: dict[str, Images] = {
        "isbi training stack": [np.stack(train)],
        "isbi test stack": [np.stack(test)],
        "isbi training slices": train,
        "isbi test slices": test,
        "isbi test stack inverted": [255 - np.stack(test)],
        "isbi test slices inverted": [255 - image for image in test],
        "isbi test stack, 40 brighter": [np.clip(np.stack(test).astype(np.int64) + 40, 0, 255).astype(np.uint8)],
        "isbi test stack, half contrast": [64 + np.stack(test) // 2],
        "isbi test stack, quarter contrast": [96 + np.stack(test) // 4],
        "bowl, all together": [np.concatenate([image.ravel() for image in bowl])],
        "bowl images": bowl,
        "bowl images inverted": [255 - image for image in bowl],
        "stardist": stardist,
        **{f"isbi test crops of {side} px": crops_of(test, side) for side in CROPS},
        **{f"bowl crops of {side} px": crops_of(bowl, side) for side in CROPS},
    }
    result: dict[str, Any] = {"data": "ISBI 2012, 2018 Data Science Bowl, StarDist"}
    for model in ("membrane", "nuclei"):
        card = load_artifact(model).card
        result[model] = {name: summarise(card, images) for name, images in sets.items()}
    save("drift-limits", result)


def crops_of(images: Images, side: int) -> Images:
    """Return 300 crops at random places, each repeated to at least `FEWEST_VALUES` pixels: its shares stay the same."""
    rng = np.random.default_rng(0)
    large = [image for image in images if min(image.shape) >= side]
    crops = []
    for _ in range(300):
        image = large[rng.integers(len(large))]
        y, x = (int(rng.integers(n - side + 1)) for n in image.shape)
        crops.append(np.tile(image[y : y + side, x : x + side].ravel(), -(-FEWEST_VALUES // side**2)))
    return crops


def summarise(card: ModelCard, images: Images) -> dict[str, Any]:
    rows = [measure(card, image) for image in images]
    found: dict[str, int] = {}
    for image in images:
        counts = count_grey_values(image)
        facts = VolumeFacts(dtype=card.input.dtype)  # grey values alone
        for finding in compare_with_training(card, facts, counts):
            found[finding.code] = found.get(finding.code, 0) + 1
    return {
        "images": len(rows),
        "found": found,
        **{name: three(row[name] for row in rows) for name in rows[0]},
    }


def measure(card: ModelCard, image: npt.NDArray[Any]) -> dict[str, float]:
    reference = Reference.of(card)
    assert reference is not None
    values, counts = count_grey_values(image).histogram

    def span(percentiles: tuple[float, float]) -> tuple[float, float]:
        return percentile_of(values, counts, percentiles[0]), percentile_of(values, counts, percentiles[1])

    distance: Callable[..., float] = reference.scaled_distance
    first, last = span(SPAN)
    trained = reference.percentile(SPAN[1]) - reference.percentile(SPAN[0])
    upright = distance(values, counts, (first, last), SPAN)
    mirrored = distance(values, counts, (last, first), SPAN)
    return {
        "distance as it is": reference.distance(values, counts),
        "distance scaled": distance(values, counts, span(SCALING), SCALING),
        "distance of shapes": upright,
        "distance of mirrored shape": mirrored,
        "mirrored over upright": mirrored / upright,
        "span over trained": (last - first) / trained,
        "share at the lowest value": counts[0] / counts.sum(),
        "share at the highest value": counts[-1] / counts.sum(),
    }


def three(values: Iterable[float]) -> list[float]:
    found = np.array([*values])
    return [round(float(value), 4) for value in (found.min(), np.median(found), found.max())]


if __name__ == "__main__":
    main()
