"""From a checkpoint to one checked artifact. Needs the extras 'train' (torch) and 'cpu' (onnxruntime)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_deploy.exporters.calibration import CalibrationSource
    from unet_deploy.exporters.export import ExportReport, export_checkpoint, export_precisions

__all__ = ["CalibrationSource", "ExportReport", "export_checkpoint", "export_precisions"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that importing the package costs nothing."""
    if name in __all__:
        module = "calibration" if name == "CalibrationSource" else "export"
        return getattr(importlib.import_module(f"unet_deploy.exporters.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
