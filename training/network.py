"""The paper's U-Net as a torch module (Ronneberger et al. 2015, section 2).

1. Contracting path: `depth` times two valid 3x3 convolutions with ReLU, then 2x2 max-pooling; the width doubles.
2. Bottom: two more convolutions at the greatest width; dropout ends the contracting path.
3. Expanding path: a 2x2 up-convolution that halves the width, the skip's centre, two valid 3x3 convolutions.
4. Head: one 1x1 convolution to the classes' logits; softmax is the caller's.

The crop margins are constants of the depth (`Geometry.crop_margins`), so an export needs no shape arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from unet_deploy.geometry import Geometry, UnetGeometry


class UNet(nn.Module):
    """The valid-convolution U-Net; 31,030,658 weights in 23 convolutional layers at its defaults.

    Parameters
    ----------
    depth
        Number of 2x2 max-poolings.
    base_width
        Feature channels of the first level; each level below has twice as many.
    in_channels
        Channels of the input image.
    classes
        Channels of the output logits.
    dropout
        Probability of dropping an activation at the end of the contracting path, in training mode only. As in the
        authors' Caffe network it stands after the last level's block and after the bottom block.

    Raises
    ------
    ConfigurationError
        If depth is not in 1..8.

    Examples
    --------
    >>> net = UNet(depth=2, base_width=4)
    >>> tuple(net(torch.zeros(1, 1, 60, 76)).shape)
    (1, 2, 20, 36)
    """

    def __init__(
        self, *, depth: int = 4, base_width: int = 64, in_channels: int = 1, classes: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.geometry = UnetGeometry(depth)
        widths = [base_width << level for level in range(depth + 1)]
        self.contracting = nn.ModuleList(
            _block(before, after) for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[level], widths[level - 1], kernel_size=2, stride=2)
            for level in range(depth, 0, -1)
        )
        self.expanding = nn.ModuleList(_block(widths[level], widths[level - 1]) for level in range(depth, 0, -1))
        self.head = nn.Conv2d(base_width, classes, kernel_size=1)
        self.dropout = nn.Dropout(dropout)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for normalised images.

        Parameters
        ----------
        x
            float32, (n, c, y, x), both sides legal (`Geometry.is_legal`; they may differ).

        Returns
        -------
        Tensor
            float32, (n, classes, y - 2·context, x - 2·context).

        Raises
        ------
        TileNotLegalError
            If a side is not legal. Not checked while compiling or exporting, where sides may be symbols.
        """
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            _require_legal(self.geometry, x)
        depth = self.geometry.depth
        skips: list[Tensor] = []
        for level, block in enumerate(self.contracting):  # x: (n, width, y, x) of this level
            if level > 0:
                x = functional.max_pool2d(x, 2)  # (n, width/2, y/2, x/2)
            x = block(x)  # (n, width, y-4, x-4)
            if level >= depth - 1:
                x = self.dropout(x)
            skips.append(x)
        skips.pop()  # the bottom is no skip
        for up, block, margin in zip(self.up, self.expanding, self.geometry.crop_margins, strict=True):
            x = up(x)  # (n, width/2, 2y, 2x)
            skip = skips.pop()[:, :, margin:-margin, margin:-margin]  # the same shape
            x = block(torch.cat([skip, x], dim=1))  # (n, width, ...) -> (n, width/2, 2y-4, 2x-4)
        logits: Tensor = self.head(x)  # (n, classes, y-2·context, x-2·context)
        return logits


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3), nn.ReLU(), nn.Conv2d(after, after, 3), nn.ReLU())


def _initialise(module: nn.Module) -> None:
    """Draw weights with standard deviation sqrt(2/N), N the incoming nodes of one neuron (section 3)."""
    if isinstance(module, nn.Conv2d):
        incoming = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    elif isinstance(module, nn.ConvTranspose2d):
        incoming = module.in_channels  # kernel = stride: each output pixel has one source pixel
    else:
        return
    nn.init.normal_(module.weight, std=(2 / incoming) ** 0.5)
    assert module.bias is not None
    nn.init.zeros_(module.bias)


def _require_legal(geometry: Geometry, x: Tensor) -> None:
    for axis, side in zip("yx", x.shape[-2:], strict=True):
        if not geometry.is_legal(side):
            geometry.require_legal(side, axis=axis)
