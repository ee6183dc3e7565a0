"""From a checkpoint to checked products. Needs the extras 'train' (torch) and 'cpu' (onnxruntime)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_deploy.exporters.adopt import AdoptionReport, adopt_model
    from unet_deploy.exporters.adopt_settings import AdoptionSettings
    from unet_deploy.exporters.calibration import CalibrationSource
    from unet_deploy.exporters.export import ExportReport, export_checkpoint, export_precisions, export_targets
    from unet_deploy.exporters.targets import PlanOptions

__all__ = [
    "AdoptionReport",
    "AdoptionSettings",
    "CalibrationSource",
    "ExportReport",
    "PlanOptions",
    "adopt_model",
    "export_checkpoint",
    "export_precisions",
    "export_targets",
]
_HOMES = {
    "AdoptionReport": "adopt",
    "AdoptionSettings": "adopt_settings",
    "CalibrationSource": "calibration",
    "PlanOptions": "targets",
    "adopt_model": "adopt",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that importing the package costs nothing."""
    if name in __all__:
        module = importlib.import_module(f"unet_deploy.exporters.{_HOMES.get(name, 'export')}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
