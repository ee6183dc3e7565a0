"""What the graph of an adopted network may hold: the rules by which `runtime.artifact` checks it, as data.

An adopted network (`exporters.adopt`) is another program's, rewritten: nodes that compute on pixels are left, and all
else, arithmetic on sizes above all, is a constant. So its operators are those whose output at a pixel depends on that
pixel's surroundings alone: nothing that sums over the tile, asks for its size, or holds another graph.
"""

from __future__ import annotations

POINTWISE_OPERATORS = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip"),
        *("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Mish", "Erf", "Exp", "Sqrt"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Neg", "Abs", "Reciprocal", "Identity"),
    }
)
"""Each value from the values at its own place."""
CHANNEL_OPERATORS = frozenset({"BatchNormalization", "Concat", "Split"})
"""Each value from the channels at its own place."""
LOCAL_OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize", "Pad", "Slice", "DepthToSpace", "SpaceToDepth"}
)
"""Each value from its surroundings, or from another grid."""
ADOPTED_OPERATORS = POINTWISE_OPERATORS | CHANNEL_OPERATORS | LOCAL_OPERATORS
ADOPTED_DATA_TYPE_BYTES = {"FLOAT": 4, "INT64": 8}
