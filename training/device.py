"""The device a training runs on: asked for, verified, never changed in silence."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from unet_deploy.errors import DeviceError, UsageError


def open_device(name: str) -> torch.device:
    """Return the device of that name.

    It is ``auto`` (the first GPU if torch sees one, else the CPU), ``cpu``, ``cuda`` or ``cuda:i``.

    Raises
    ------
    UsageError
        If the name is none of these.
    DeviceError
        If torch does not see that GPU.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:[0-9]{1,3})?", name):
        raise UsageError(f"device {name!r} is none of auto, cpu, cuda and cuda:i", fix="--device auto")
    index = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        built = torch.version.cuda
        raise DeviceError(
            f"{name} was asked for, torch sees {count} CUDA GPU(s)",
            f"this torch ({torch.__version__}) is built " + (f"for CUDA {built}" if built else "for the CPU only"),
            fix="--device cpu, or install torch for CUDA (https://pytorch.org/get-started) and the GPU's driver",
        )
    return torch.device("cuda", index)


def precision(device: torch.device, *, is_mixed: bool) -> AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 where asked for on a GPU that computes in it, else float32."""
    if is_mixed and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
