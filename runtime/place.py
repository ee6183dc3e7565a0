"""Where a run writes, and whether it begins there, goes on, or does a part again. Nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_deploy.errors import ConfigurationError, UsageError
from unet_deploy.runtime.label_group import is_made_for, require_label_target
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.output_paths import check_output_path
from unet_deploy.runtime.plan import SegmentationPlan
from unet_deploy.runtime.preparation import Preparation
from unet_deploy.runtime.region import Region
from unet_deploy.runtime.resume import Begun, find_begun, is_unborn


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An output that was checked. `begun` is the run that goes on there, None for a new one.

    `may_replace` says that an earlier segmentation which lies there may be deleted by a new run; `again`, that blocks
    which are done are made once more.
    """

    target: Path
    begun: Begun | None
    may_replace: bool
    again: bool


def find_place(
    ready: Preparation,
    *,
    output: str | Path | None,
    into_labels: str | None,
    overwrite: bool,
    is_region: bool,
    retry_failed: bool,
    kinds: Sequence[str],
    wants_instances: bool,
) -> Place:
    """Return where to write.

    Parameters
    ----------
    ready
        What is to be segmented.
    output, into_labels
        A store, or a name within the volume's own labels; of neither, the default.
    overwrite
        Whether an earlier segmentation may be replaced: all of it, or the blocks of a region.
    is_region
        Whether only a region is to be made.
    retry_failed
        Whether failed blocks are to be made again.
    kinds, wants_instances
        What is to be written.

    Raises
    ------
    UsageError
        If two places were named.
    OutputExistsError, OutputPathError, JournalError
        If a run may not write there.
    """
    if output is not None and into_labels is not None:
        raise UsageError(
            f"two places came to write to: {output}, and the volume's own labels {into_labels}",
            fix="leave out --output or --into-labels",
        )
    info = ready.volume.info
    if into_labels is not None:
        target = require_label_target(info, into_labels, kinds=kinds, wants_instances=wants_instances)
    else:
        target = Path(output) if output is not None else ready.default_output
    again = overwrite and is_region
    begun = None if overwrite and not is_region else find_begun(target, retry_failed=retry_failed, again=again)
    is_free = overwrite or begun is not None or is_unborn(target)
    check_output_path(target, volume=Path(info.path), overwrite=is_free, is_label_group=into_labels is not None)
    return Place(target=target, begun=begun, may_replace=overwrite, again=again and begun is not None)


def share_to_make(plan: SegmentationPlan, place: Place, region: Region | None) -> float:
    """Return about how much of a volume a run is to make there, 1 for all of it."""
    found = place.begun.n_blocks if place.begun is not None and region is None else 0
    return max(plan.count(region) - found, 0) / plan.n_blocks


def require_objects_fit(place: Place, spec: OutputSpec, *, wants_instances: bool) -> None:
    """Refuse to change labels whose objects were numbered before, unless they are numbered anew.

    Raises
    ------
    ConfigurationError
        If they would be left as they are.
    """
    objects = Path(spec.instances_path)
    are_ours = objects.exists() and (not spec.is_label_group or is_made_for(objects, spec.labels_name))
    if place.begun is not None and not wants_instances and are_ours:
        raise ConfigurationError(
            f"the objects of {place.target} would no longer fit its labels, some of which are made now",
            f"they were numbered before, in {spec.instances_path}",
            fix="number them anew with --write instances, beside what else was written",
        )
