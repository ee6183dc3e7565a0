"""The network of a model card as JSON, and the geometry that follows from it: what a tile must be.

1. ``unet-2015`` is the paper's: its depth decides the geometry, which is written for those who read without us.
2. ``adopted`` is another program's: its divisor and context were measured, and stand in the geometry alone.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from unet_deploy._json_reader import Reader, is_number
from unet_deploy.card import AdoptedNetwork, AnyNetwork, JsonObject, Network
from unet_deploy.geometry import MAX_CONTEXT, MAX_DEPTH, MAX_DIVISOR, UnetGeometry

MAX_CHANNELS = 64
MAX_CLASSES = 255
MAX_WEIGHTS_BYTES = 2**31 - 1
"""What an ONNX file can hold."""
ARCHITECTURES = ("unet-2015", "adopted")


def network_to_objects(network: AnyNetwork) -> dict[str, JsonObject]:
    """Return the values of the card's keys ``network`` and ``geometry``."""
    if isinstance(network, AdoptedNetwork):
        return {
            "network": {
                "architecture": "adopted",
                "in_channels": network.in_channels,
                "classes": network.classes,
                "flops_per_pixel": network.flops_per_pixel,
                "activation_bytes_per_pixel": network.activation_bytes_per_pixel,
                "weights_bytes": network.weights_bytes,
            },
            "geometry": {"divisor": network.divisor, "context": network.context},
        }
    geometry = network.geometry
    return {
        "network": {
            "architecture": "unet-2015",
            "depth": network.depth,
            "base_width": network.base_width,
            "in_channels": network.in_channels,
            "classes": network.classes,
        },
        "geometry": {
            "divisor": geometry.divisor,
            "context": geometry.context,
            "crop_margins": list(geometry.crop_margins),
        },
    }


def read_network(reader: Reader) -> tuple[AnyNetwork | None, int | None, int | None]:
    """Take ``network`` and ``geometry``; return the network, its channels and its classes, each None if it is wrong."""
    net, declared = reader.take_object("network"), reader.take_object("geometry")
    architecture = net.take_choice("architecture", ARCHITECTURES)
    if architecture == "adopted":
        return _read_adopted(net, declared)
    depth = net.take_int("depth", 1, MAX_DEPTH)
    width = net.take_int("base_width", 1, 1024)
    channels, classes = _take_sizes(net)
    net.finish()
    if depth is not None:
        geometry = UnetGeometry(depth)
        expected = {
            "divisor": geometry.divisor,
            "context": geometry.context,
            "crop_margins": list(geometry.crop_margins),
        }
        for key, value in expected.items():
            declared.take(key, f"{value} (depth {depth})", partial(operator.eq, value))
        declared.finish()
    if architecture is None or depth is None or width is None or channels is None or classes is None:
        return None, channels, classes
    return Network(depth=depth, base_width=width, in_channels=channels, classes=classes), channels, classes


def _read_adopted(net: Reader, declared: Reader) -> tuple[AdoptedNetwork | None, int | None, int | None]:
    channels, classes = _take_sizes(net)
    flops = net.take("flops_per_pixel", "a number from 0", _is_size)
    activations = net.take("activation_bytes_per_pixel", "a number above 0", lambda v: _is_size(v) and v > 0)
    weights = net.take_int("weights_bytes", 0, MAX_WEIGHTS_BYTES)
    net.finish()
    divisor = declared.take_int("divisor", 1, MAX_DIVISOR)
    context = declared.take_int("context", 0, MAX_CONTEXT)
    declared.finish()
    if divisor is not None and context is not None and context % divisor:
        declared.note("context", f"a multiple of the divisor {divisor} was expected, {context} came")
        context = None
    if channels is None or classes is None or divisor is None or context is None:
        return None, channels, classes
    if flops is None or activations is None or weights is None:
        return None, channels, classes
    network = AdoptedNetwork(
        divisor=divisor,
        context=context,
        in_channels=channels,
        classes=classes,
        flops_per_pixel=flops,
        activation_bytes_per_pixel=activations,
        weights_bytes=weights,
    )
    return network, channels, classes


def _take_sizes(net: Reader) -> tuple[int | None, int | None]:
    return net.take_int("in_channels", 1, MAX_CHANNELS), net.take_int("classes", 2, MAX_CLASSES)


def _is_size(value: Any) -> bool:
    return is_number(value) and value >= 0
