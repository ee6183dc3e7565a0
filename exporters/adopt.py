"""Another program's network in, one artifact out that streams like ours.

1. Open the file safely (`exporters.foreign`), out of its package if it has one (`exporters.foreign_package`), look at
   its nodes (`exporters.foreign_rules`), and rewrite it to nodes that compute on pixels and constants
   (`exporters.foreign_graph`).
2. Read divisor, context and cost off the graph (`exporters.foreign_reach`), and write it with input ``image``, output
   ``logits``, and its border cut off: what padding can have touched is never seen (`exporters.foreign_write`).
3. Make the test tensor: the foreign graph itself, as it came, gives the logits.
4. Stamp the card, read the bytes back as the runtime will, open the engine (which replays the test tensor: the
   rewritten graph computes what the foreign one does), and try what the card promises (`runtime.proof`): nothing beyond
   the context is felt, and tiles equal one pass.
5. Only then write the file, in one move. Needs onnxruntime, not torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from unet_deploy.card import AdoptedNetwork, ModelCard, TestTensor, Training
from unet_deploy.errors import AdoptionError, ParityError
from unet_deploy.exporters.adopt_settings import AdoptionSettings, class_infos, contract_of, require_settings
from unet_deploy.exporters.foreign import ForeignModel, load_foreign, read_foreign
from unet_deploy.exporters.foreign_graph import rewrite
from unet_deploy.exporters.foreign_package import fill_in, is_package, open_package
from unet_deploy.exporters.foreign_reach import SIDES, Reach, find_cost, find_reach
from unet_deploy.exporters.foreign_session import evaluate
from unet_deploy.exporters.foreign_write import infer_shapes, write_graph
from unet_deploy.exporters.graph import stamp_card
from unet_deploy.exporters.targets import require_place, write_whole
from unet_deploy.runtime.artifact import Artifact, hash_graph, read_artifact
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.engines.base import EngineDescription
from unet_deploy.runtime.normalise import normaliser_of_image
from unet_deploy.runtime.pictures import sample_picture
from unet_deploy.runtime.proof import Proof, prove

ENGINE = "onnxruntime-cpu"
MAX_CLASSES = 255
MAX_CHANNELS = 64
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionReport:
    """What was written, what was found out, and how it was proved; `notes` say what was changed, in words.

    `test_difference` is between the rewritten graph and the foreign one, on the test tensor.
    """

    path: Path
    artifact: Artifact
    reach: Reach
    notes: tuple[str, ...]
    engine: EngineDescription
    test_difference: float
    proof: Proof


def adopt_model(
    source: str | Path,
    output: str | Path,
    settings: AdoptionSettings,
    *,
    logits: str | None = None,
    threads: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> AdoptionReport:
    """Make an artifact of a foreign ONNX file.

    Parameters
    ----------
    source
        The foreign file: a fully convolutional 2-D network whose output is as large as its input. Or a bioimage.io
        package that holds one (a zip, a folder, its ``rdf.yaml``), whose description fills in what `settings` leave.
    output
        The artifact to write.
    settings
        What the file does not say of itself.
    logits
        Which output is the segmentation, if there are several.
    threads
        CPU threads of the proof; 0: one a core.
    overwrite
        Replace an existing file.
    progress
        Told each step, in words.

    Raises
    ------
    ConfigurationError, UnknownNameError
        If the settings cannot be meant, or do not fit the network.
    OutputExistsError, OutputPathError
        If the output exists or is the source, or its folder does not exist or cannot be written to.
    NoSpaceError
        If the disk is full.
    ModelNotFoundError, NotAnArtifactError, UnsafeModelError
        If the file is not there, no ONNX, or holds what no segmentation network needs.
    AdoptionError
        If the network cannot stream; the message names the nodes.
    TestTensorError, ParityError
        If what would be written does not compute what the foreign file does, or depends on its tiles.
    MissingDependencyError
        If onnxruntime is not installed.
    """
    source, output = Path(source), Path(output)
    require_place("onnx", output, source=source, overwrite=overwrite)
    foreign, settings = _load(source, settings, logits=logits, progress=progress)
    artifact, reach, notes = _rewrite(foreign, settings, stem=source.stem, target=str(output), progress=progress)
    progress("reading it back and replaying the test tensor")
    engine = open_engine(artifact, device="cpu", engine=ENGINE, threads=threads)
    try:
        proof = prove(artifact, engine, sample_picture(artifact.card), say=progress)
        if not proof.has_passed:
            raise ParityError(
                f"{source} was not adopted: tiled, it does not compute what it computes in one pass",
                *proof.problems,
                f"context {reach.context} px and divisor {reach.divisor}, by its graph",
                fix="report this with the file: its graph was read wrongly",
            )
        write_whole(output, artifact.data)
        return AdoptionReport(
            path=output,
            artifact=artifact,
            reach=reach,
            notes=notes,
            engine=engine.describe(),
            test_difference=engine.test_difference,
            proof=proof,
        )
    finally:
        engine.close()


def _load(
    source: Path, settings: AdoptionSettings, *, logits: str | None, progress: Progress
) -> tuple[ForeignModel, AdoptionSettings]:
    """Return the foreign network, and the settings with what its package says filled in, if it is one."""
    if not is_package(source):
        require_settings(settings)
        progress("looking at the graph")
        return load_foreign(source, output=logits), settings
    progress("reading the package")
    package = open_package(source)
    settings = fill_in(settings, package.settings)
    require_settings(settings)
    progress("looking at the graph")
    foreign = read_foreign(package.data, source=package.source, output=logits)
    is_sigmoid = foreign.is_sigmoid or package.is_sigmoid
    return replace(foreign, is_sigmoid=is_sigmoid, notes=foreign.notes + package.notes), settings


def _rewrite(
    foreign: ForeignModel, settings: AdoptionSettings, *, stem: str, target: str, progress: Progress
) -> tuple[Artifact, Reach, tuple[str, ...]]:
    graph = rewrite(foreign)
    progress("finding divisor, context and cost")
    shapes = [infer_shapes(graph, side, source=foreign.source) for side in SIDES]
    reach, cost = find_reach(graph, shapes, source=foreign.source), find_cost(graph, shapes[0])
    channels = shapes[0][graph.logits][1]
    notes = foreign.notes + _class_notes(foreign, channels)
    contract, normalisation = contract_of(settings, foreign.in_channels)
    classes = max(channels, 2)
    card = ModelCard(
        name=settings.name or stem,
        description=f"a network of another program, adopted from {Path(foreign.source).name} ({foreign.producer})",
        network=AdoptedNetwork(
            divisor=reach.divisor,
            context=reach.context,
            in_channels=foreign.in_channels,
            classes=classes,
            flops_per_pixel=cost.flops_per_pixel,
            activation_bytes_per_pixel=cost.activation_bytes_per_pixel,
            weights_bytes=cost.weights_bytes,
        ),
        input=contract,
        normalisation=normalisation,
        classes=class_infos(settings, classes),
        training=_unknown_training(foreign, settings, reach),
        parent_sha256=foreign.sha256,
    )
    model = write_graph(graph, classes=channels, context=reach.context, source=foreign.source)
    progress("running the foreign graph on the test tensor")
    card = card.with_export(
        graph_sha256=hash_graph(model), test_tensor=_make_test_tensor(foreign, card), parent_sha256=foreign.sha256
    )
    return read_artifact(stamp_card(model, card), source=target), reach, notes


def _class_notes(foreign: ForeignModel, channels: int) -> tuple[str, ...]:
    """Return what one output channel is taken for; refuse what labels cannot be made of."""
    if foreign.in_channels > MAX_CHANNELS or channels > MAX_CLASSES:
        raise AdoptionError(
            f"{foreign.source} has {foreign.in_channels} channels and {channels} outputs",
            f"at most {MAX_CHANNELS} and {MAX_CLASSES} were expected",
            fix="use a network of fewer",
        )
    if channels > 1 and foreign.is_sigmoid:
        raise AdoptionError(
            f"{foreign.source} ends in a sigmoid over {channels} outputs, a soft-max was expected",
            "by a sigmoid each a pixel may be several things at once, or none",
            "labels say one class for each pixel, by a soft-max over classes",
            fix="export one output alone, or a network trained with a soft-max",
        )
    if channels > 1:
        return ()
    return ("its one output is taken as the logit of the second class: the soft-max of (0, logit) is its sigmoid",)


def _unknown_training(foreign: ForeignModel, settings: AdoptionSettings, reach: Reach) -> Training:
    """Return what is known of a foreign network's training: nothing, and where the file came from."""
    return Training(
        data="adopted; training unknown",
        licence=settings.licence,
        citation=settings.citation,
        images=0,
        validation=(),
        steps=0,
        seed=0,
        seconds=0.0,
        versions={"onnx": onnx.__version__},
        scores={},
        recipe={
            "adopted": {
                "file": Path(foreign.source).name,
                "sha256": foreign.sha256,
                "producer": foreign.producer,
                "opset": foreign.opset,
                "reach": [reach.before, reach.after],
                "changed": list(foreign.notes),
            }
        },
    )


def _make_test_tensor(foreign: ForeignModel, card: ModelCard) -> TestTensor:
    """Return a picture in the card's dtype, and the logits that the foreign graph itself gives for it, cut to the core.

    Its middle is noise and its rim blocks: the rim, which a network that sees far has much of, packs well.
    """
    geometry, channels = card.geometry, card.network.in_channels
    y, x = geometry.smallest_tile, geometry.smallest_tile + geometry.divisor
    image = _draw_image(card, channels, y, x)
    batch = normaliser_of_image(card, image)(image)[None]
    values = evaluate(foreign.model, {foreign.input_name: batch}, [foreign.logits], source=foreign.source)[
        foreign.logits
    ]
    cut = geometry.context
    logits: npt.NDArray[np.float32] = values[:, :, cut : y - cut, cut : x - cut]
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return TestTensor(image=image[None], logits=np.ascontiguousarray(logits))


def _draw_image(card: ModelCard, channels: int, y: int, x: int) -> npt.NDArray[Any]:
    rng = np.random.default_rng(20150518)  # the paper's date on arXiv
    low, high = card.input.value_range
    blocks = rng.random((channels, -(-y // 8), -(-x // 8)))
    values = np.kron(blocks, np.ones((8, 8)))[:, :y, :x]
    middle = np.s_[:, y // 4 : y - y // 4, x // 4 : x - x // 4]
    values[middle] = (values[middle] + rng.random(values[middle].shape)) / 2
    grey = low + (high - low) * values
    dtype = np.dtype(card.input.dtype)
    return np.asarray(np.rint(grey) if dtype.kind in "iu" else grey, dtype)
