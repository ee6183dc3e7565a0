"""How good a segmentation is, by the field's own measures; no torch.

>>> from unet_deploy.metrics import isbi_scores, seg_scores

The ISBI challenges of 2012 and 2015 (`isbi_scores`: pixel, Rand and warping error, V_Rand, V_info), the Cell Tracking
Challenge (`seg_scores`), overlap of classes (`class_overlap`), objects found, split and merged (`instance_scores`),
touching ones kept apart (`count_touching_pairs`), and the paper's tables to stand beside (`published_table`). Counters
take a volume slice by slice. Importing this package costs nothing: each name is imported on first use, and SciPy when
something is scored that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_deploy.metrics._isbi_input import ISBI_THRESHOLDS, SliceReadable
    from unet_deploy.metrics._warp import Mismatch
    from unet_deploy.metrics.components import number_components
    from unet_deploy.metrics.ctc import (
        Frame,
        FrameScore,
        ObjectScore,
        SegCounter,
        SegScores,
        require_frames,
        seg_scores,
    )
    from unet_deploy.metrics.instances import (
        IOU_THRESHOLDS,
        FrameErrors,
        InstanceCounter,
        InstanceScores,
        ThresholdScore,
        instance_scores,
    )
    from unet_deploy.metrics.isbi import (
        IsbiScores,
        PixelCounter,
        PixelScore,
        PixelScores,
        RandCounter,
        RandScore,
        RandScores,
        isbi_scores,
        pixel_error,
        rand_error,
    )
    from unet_deploy.metrics.overlap import ClassOverlap, OverlapCounter, OverlapScores, class_overlap
    from unet_deploy.metrics.pairs import PairCounter, PairCounts, count_pairs
    from unet_deploy.metrics.published import (
        CTC2015,
        ISBI2012,
        Column,
        PlacedRow,
        PlacedTable,
        PublishedTable,
        Row,
        place,
        published_table,
    )
    from unet_deploy.metrics.touching import TouchingPairs, count_separated, count_touching_pairs, find_touching
    from unet_deploy.metrics.vrand import PixelPairs, VCounter, VScore, VScores, v_scores
    from unet_deploy.metrics.warping import (
        WHOLE_IMAGE,
        MismatchPixels,
        WarpingCounter,
        WarpingScore,
        WarpingScores,
        find_mismatches,
        warping_error,
    )

_HOMES = {
    "CTC2015": "published",
    "ClassOverlap": "overlap",
    "Column": "published",
    "Frame": "ctc",
    "FrameErrors": "instances",
    "FrameScore": "ctc",
    "IOU_THRESHOLDS": "instances",
    "ISBI2012": "published",
    "ISBI_THRESHOLDS": "_isbi_input",
    "InstanceCounter": "instances",
    "InstanceScores": "instances",
    "IsbiScores": "isbi",
    "Mismatch": "_warp",
    "MismatchPixels": "warping",
    "ObjectScore": "ctc",
    "OverlapCounter": "overlap",
    "OverlapScores": "overlap",
    "PairCounter": "pairs",
    "PairCounts": "pairs",
    "PixelCounter": "isbi",
    "PixelPairs": "vrand",
    "PixelScore": "isbi",
    "PixelScores": "isbi",
    "PlacedRow": "published",
    "PlacedTable": "published",
    "PublishedTable": "published",
    "RandCounter": "isbi",
    "RandScore": "isbi",
    "RandScores": "isbi",
    "Row": "published",
    "SegCounter": "ctc",
    "SegScores": "ctc",
    "SliceReadable": "_isbi_input",
    "ThresholdScore": "instances",
    "TouchingPairs": "touching",
    "VCounter": "vrand",
    "VScore": "vrand",
    "VScores": "vrand",
    "WHOLE_IMAGE": "warping",
    "WarpingCounter": "warping",
    "WarpingScore": "warping",
    "WarpingScores": "warping",
    "class_overlap": "overlap",
    "count_pairs": "pairs",
    "count_separated": "touching",
    "count_touching_pairs": "touching",
    "find_mismatches": "warping",
    "find_touching": "touching",
    "instance_scores": "instances",
    "isbi_scores": "isbi",
    "number_components": "components",
    "pixel_error": "isbi",
    "place": "published",
    "published_table": "published",
    "rand_error": "isbi",
    "require_frames": "ctc",
    "seg_scores": "ctc",
    "v_scores": "vrand",
    "warping_error": "warping",
}

__all__ = [
    "CTC2015",
    "IOU_THRESHOLDS",
    "ISBI2012",
    "ISBI_THRESHOLDS",
    "WHOLE_IMAGE",
    "ClassOverlap",
    "Column",
    "Frame",
    "FrameErrors",
    "FrameScore",
    "InstanceCounter",
    "InstanceScores",
    "IsbiScores",
    "Mismatch",
    "MismatchPixels",
    "ObjectScore",
    "OverlapCounter",
    "OverlapScores",
    "PairCounter",
    "PairCounts",
    "PixelCounter",
    "PixelPairs",
    "PixelScore",
    "PixelScores",
    "PlacedRow",
    "PlacedTable",
    "PublishedTable",
    "RandCounter",
    "RandScore",
    "RandScores",
    "Row",
    "SegCounter",
    "SegScores",
    "SliceReadable",
    "ThresholdScore",
    "TouchingPairs",
    "VCounter",
    "VScore",
    "VScores",
    "WarpingCounter",
    "WarpingScore",
    "WarpingScores",
    "class_overlap",
    "count_pairs",
    "count_separated",
    "count_touching_pairs",
    "find_mismatches",
    "find_touching",
    "instance_scores",
    "isbi_scores",
    "number_components",
    "pixel_error",
    "place",
    "published_table",
    "rand_error",
    "require_frames",
    "seg_scores",
    "v_scores",
    "warping_error",
]


def __getattr__(name: str) -> Any:
    """Import on first use."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"unet_deploy.metrics.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
