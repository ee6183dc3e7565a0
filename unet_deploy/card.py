"""The model card: everything an artifact must carry to be used rightly.

`ModelCard` is the value; `unet_deploy.card_json` writes and reads it. A training checkpoint holds a card without the
graph's hash and the test tensor, which only an export knows. Hashes and tensors are checked by whoever holds the
bytes: `runtime.artifact` and the engines.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import Geometry, SameGeometry, UnetGeometry

Precision = Literal["fp32", "fp16", "int8"]
InputDtype = Literal["uint8", "uint16", "int16", "float32"]
JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The paper's architecture and its sizes (Ronneberger et al. 2015, section 2)."""

    depth: int
    base_width: int
    in_channels: int
    classes: int

    @property
    def geometry(self) -> UnetGeometry:
        """What the depth decides: context, divisor, legal sides."""
        return UnetGeometry(self.depth)

    @property
    def words(self) -> str:
        """The network in a few words."""
        return f"U-Net 2015, depth {self.depth}, width {self.base_width}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedNetwork:
    """A fully convolutional network of another program, whose output is as large as its input before the crop.

    `divisor` and `context` were measured when it was adopted. `flops_per_pixel` and `activation_bytes_per_pixel` are
    of one input pixel, `weights_bytes` of the whole; they decide cost, never a result.
    """

    divisor: int
    context: int
    in_channels: int
    classes: int
    flops_per_pixel: float
    activation_bytes_per_pixel: float
    weights_bytes: int

    @property
    def geometry(self) -> SameGeometry:
        """What divisor and context decide."""
        return SameGeometry(self.divisor, self.context)

    @property
    def words(self) -> str:
        """The network in a few words."""
        return f"adopted network, divisor {self.divisor}, context {self.context} px"


AnyNetwork = Network | AdoptedNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class InputContract:
    """What the network must be given, before normalisation.

    `value_range` is the range the format of the training images spans (0..255 for 8 bit), `channels` their
    names in order, `pixel_size_nm` the (y, x) size trained at, None where unknown.
    """

    dtype: InputDtype
    value_range: tuple[float, float]
    channels: tuple[str, ...]
    pixel_size_nm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """(value - mean) / std by channel, with constants fixed at training; `source` says what they were taken from.

    With `percentiles`, two of 0..100, each channel of an image is first scaled by the grey values they stand for in
    its whole volume, value → (value - low) / (high - low) (`unet_deploy.percentiles`); the constants are then those
    of training images scaled in the same way.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    percentiles: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassInfo:
    """A class's name and display colour (``#rrggbb``); its index is its label."""

    name: str
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Where the weights come from. `scores` are on images named in `validation`, never on training images."""

    data: str
    licence: str
    citation: str
    images: int
    validation: tuple[str, ...]
    steps: int
    seed: int
    seconds: float
    versions: dict[str, str]
    scores: dict[str, float]
    recipe: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of training grey values in equal bins over `value_range`."""

    value_range: tuple[float, float]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TestTensor:
    """A small raw image and the logits the fp32 parent gives for it.

    `image` has shape (n, c, y, x) in the input's dtype, not yet normalised; `logits` has shape
    (n, classes, y - 2·context, x - 2·context), float32.
    """

    __test__ = False  # not a pytest class
    image: npt.NDArray[Any]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How near an fp16 or int8 graph came to its fp32 parent when it was exported.

    `engine` ran it on `tiles` tiles of `data`; differences are of logits, `labels_equal` is the share of pixels that
    kept their most likely class.
    """

    engine: str
    data: str
    tiles: int
    max_difference: float
    mean_difference: float
    labels_equal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Everything an artifact carries besides its graph. See DESIGN section 5."""

    name: str
    description: str
    network: AnyNetwork
    input: InputContract
    normalisation: Normalisation
    classes: tuple[ClassInfo, ...]
    training: Training
    histogram: Histogram | None = None
    precision: Precision = "fp32"
    parent_sha256: str | None = None
    graph_sha256: str | None = None
    parity: Parity | None = None
    test_tensor: TestTensor | None = field(default=None, compare=False)

    @property
    def unet(self) -> Network:
        """The paper's network, which is all that is trained and exported here."""
        assert isinstance(self.network, Network), self.network
        return self.network

    @property
    def geometry(self) -> Geometry:
        """What decides how the network is tiled."""
        return self.network.geometry

    def with_export(
        self,
        *,
        graph_sha256: str,
        test_tensor: TestTensor,
        precision: Precision = "fp32",
        parent_sha256: str | None = None,
    ) -> ModelCard:
        """Return the card of an exported file."""
        return replace(
            self,
            graph_sha256=graph_sha256,
            test_tensor=test_tensor,
            precision=precision,
            parent_sha256=parent_sha256,
        )
