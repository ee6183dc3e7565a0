"""The U-Net of Ronneberger, Fischer and Brox (2015), from a few annotated images to gigapixel volumes.

`unet_deploy.training` trains (torch), `unet_deploy.exporters` exports (torch, onnx), `unet_deploy.runtime`
segments (neither). This package itself holds what they share: errors, geometry and the model card.
"""

__version__ = "0.1.0"
