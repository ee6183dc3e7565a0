"""The texts of a bioimage.io package: YAML, citations, the licence's name, and README.md.

1. YAML is written so that YAML 1.1 and 1.2 read the same: every text in double quotes, every number with its point.
2. A citation enters the description if it has a DOI, an arXiv number or an address, which the format demands; README.md
   has them all, as the card has them.
3. A licence that is known by an SPDX identifier is named by it; any other is a file of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unet_deploy.card import JsonObject, ModelCard, Network
from unet_deploy.runtime.artifact import Artifact

PAPER = {
    "text": "Ronneberger, Fischer, Brox 2015: U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI",
    "doi": "10.1007/978-3-319-24574-4_28",
}
PAPER_ARXIV = "1505.04597"
_DOI = re.compile(r"\b10\.\d{4,9}/[^\s;,]+[^\s;,.)]")
_ARXIV = re.compile(r"\barXiv:\s?(\d{4}\.\d{4,5})", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://[^\s;,]+[^\s;,.)]")
UNKNOWN = "unknown"
"""What the card of an adopted network says of its licence and citation, where nobody said it."""
_CREATIVE_COMMONS = re.compile(r"cc-by(-nc)?(-sa|-nd)?-([1-4]\.0)")
_SPDX = {
    "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "mit": "MIT",
    "mit-license": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "apache-2.0": "Apache-2.0",
    "apache-license-2.0": "Apache-2.0",
}


def write_yaml(value: Mapping[str, Any]) -> str:
    r"""Return plain values as YAML in block style.

    >>> print(write_yaml({"a": [{"b": 1, "c": "x"}, 2.0], "d": [], "e": None}), end="")
    a:
      - b: 1
        c: "x"
      - 2.0
    d: []
    e: null
    """
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:
    """Return a value's lines; a nested one is indented by whoever asked for it."""
    if isinstance(value, Mapping) and value:
        lines: list[str] = []
        for key, entry in value.items():
            inner = _lines(entry)
            is_block = isinstance(entry, Mapping | list | tuple) and len(entry) > 0
            lines += [f"{key}:", *(f"  {line}" for line in inner)] if is_block else [f"{key}: {inner[0]}"]
        return lines
    if isinstance(value, list | tuple) and value:
        return [f"{'  ' if index else '- '}{line}" for entry in value for index, line in enumerate(_lines(entry))]
    return [_scalar(value)]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    text = json.dumps(value, allow_nan=False)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text


def list_citations(card: ModelCard) -> list[JsonObject]:
    """Return what the description cites: the parts of the card's citation that can be looked up, and the paper."""
    found: list[JsonObject] = []
    for part in re.split(r"[;\n]", card.training.citation):
        text = part.strip()
        if match := _DOI.search(text):
            found.append({"text": text, "doi": match[0]})
        elif match := _ARXIV.search(text):
            found.append({"text": text, "doi": f"10.48550/arXiv.{match[1]}"})
        elif match := _ADDRESS.search(text):
            found.append({"text": text, "url": match[0]})
    is_cited = any(PAPER["doi"] == entry.get("doi") or PAPER_ARXIV in entry["text"] for entry in found)
    return found if is_cited or not isinstance(card.network, Network) else [*found, dict(PAPER)]


def stated(text: str) -> str:
    """Return what a card states; nothing where it states nothing."""
    return "" if text == UNKNOWN else text


def spdx_identifier(licence: str) -> str | None:
    """Return the SPDX identifier of a licence, None if its text is none that is known.

    >>> spdx_identifier("CC0 1.0"), spdx_identifier("CC BY-NC 4.0"), spdx_identifier("ask me")
    ('CC0-1.0', 'CC-BY-NC-4.0', None)
    """
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
    return name.upper() if _CREATIVE_COMMONS.fullmatch(name) else _SPDX.get(name)


def write_readme(artifact: Artifact, *, authors: Sequence[str]) -> str:
    """Return README.md: what the network is, takes and gives, and how well it does, from its card."""
    card, training = artifact.card, artifact.card.training
    context, divisor, least = card.geometry.context, card.geometry.divisor, card.geometry.smallest_tile
    pixel = card.input.pixel_size_nm
    sections = {
        f"# {card.name}": [card.description, f"Authors: {', '.join(authors)}" if authors else ""],
        "## Input": [
            f"Channels: {', '.join(card.input.channels)}. Data type {card.input.dtype}, grey values "
            f"{card.input.value_range[0]:g} to {card.input.value_range[1]:g}, not normalised.",
            "" if pixel is None else f"Trained at {pixel[0]:g} x {pixel[1]:g} nm a pixel (y, x).",
            _describe_normalisation(card),
            f"Sides are {least} + n · {divisor}. The output is {context} pixels smaller on each side: mirror that much "
            "around an image to get a result for all of it.",
        ],
        "## Output": [
            "The probability of each class: " + ", ".join(f"{n} {c.name}" for n, c in enumerate(card.classes)) + "."
        ],
        "## Tiles": [
            f"Two tiles agree on a pixel only if their origins differ by a multiple of {divisor}. A volume of any size "
            f"is segmented so, without seams, by `unet-deploy segment VOLUME.zarr --model model.onnx`: the file "
            "`model.onnx` of this package is a whole artifact of unet-deploy. Other readers may tile wrongly or not at "
            "all, since the output is smaller than the input: bioimageio.core 0.11 takes whole images only.",
        ],
        "## Training": [
            f"{card.network.words}, {card.precision}.",
            f"{training.images} image(s), {training.steps} steps, seed {training.seed}." if training.steps else "",
            f"Data: {training.data}" if training.data else "",
        ],
        "## Validation": _describe_scores(card),
        "## Citation": [
            stated(training.citation),
            f"{PAPER['text']}, doi:{PAPER['doi']}" if isinstance(card.network, Network) else "",
        ],
        "## Licence": [stated(training.licence) or "not stated"],
    }
    blocks = [[heading, *(text for text in texts if text)] for heading, texts in sections.items()]
    return "\n\n".join(text for block in blocks for text in block) + "\n"


def _describe_normalisation(card: ModelCard) -> str:
    constants = card.normalisation
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (constants.mean, constants.std))
    if constants.percentiles is None:
        return f"The package subtracts {mean} and divides by {std} ({constants.source})."
    low, high = constants.percentiles
    return (
        f"The package scales each channel by its percentiles {low:g} and {high:g}, then subtracts {mean} and divides "
        f"by {std} ({constants.source}). It measures them in each plane; unet-deploy measures them once in a whole "
        "volume, which keeps planes alike."
    )


def _describe_scores(card: ModelCard) -> list[str]:
    training = card.training
    if not training.scores:
        return ["The card has no scores. Compare the result with annotated images that were not trained on."]
    names = ", ".join(training.validation[:10]) + (", …" if len(training.validation) > 10 else "")
    return [
        f"On images that were not trained on ({names or 'not named'}), as they were measured during training:",
        "\n".join(f"- {name}: {score:.4g}" for name, score in sorted(training.scores.items())),
        "`unet-deploy evaluate IMAGES LABELS --model model.onnx` measures them on images of your own.",
    ]
