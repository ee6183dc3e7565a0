"""Engines: what runs the network. One module each; the checks they share are in `base`, the choice in `choice`."""

from __future__ import annotations

from unet_deploy.runtime.engines.base import Engine, EngineDescription, Verdict
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.choice import candidates, open_engine, parse_device

__all__ = ["CheckedEngine", "Engine", "EngineDescription", "Verdict", "candidates", "open_engine", "parse_device"]
