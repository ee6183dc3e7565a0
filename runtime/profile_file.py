"""The file of a profile (``--profile FILE``): whether it can be written, and how.

The suffix says how: a page to look at (.html, `timeline_page`), or trace events (.json) for https://ui.perfetto.dev and
``chrome://tracing``. The file is whole or not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unet_deploy.runtime._side_file import SideFile
from unet_deploy.runtime.profile import Drawing
from unet_deploy.runtime.timeline_page import make_page

SUFFIXES = (".html", ".json")
SIGNATURE = b"unet-deploy profile"
"""In the first bytes of each file, so that it is known to be one."""
_HEAD_BYTES = 200


def check_profile_path(path: Path, *, overwrite: bool, goes_on: bool = False) -> None:
    """Refuse, before any work, a place where a profile cannot be written or would harm something.

    Parameters
    ----------
    path
        The file, ``.html`` or ``.json``.
    overwrite
        Whether a file that is there may be replaced.
    goes_on
        Whether an earlier run is gone on with: then a profile is, which that run may have written.

    Raises
    ------
    UsageError
        If the suffix is another.
    OutputPathError
        If the folder is missing, or belongs to a Zarr store; or something that is no file is there.
    OutputExistsError
        If a file is there that may not be replaced.
    """
    _file().check(path, overwrite=overwrite, goes_on=goes_on)


def _is_profile(path: Path) -> bool:
    with path.open("rb") as file:
        return SIGNATURE in file.read(_HEAD_BYTES)


def write_profile(drawing: Drawing) -> None:
    """Write a profile as its file's suffix says.

    Raises
    ------
    NoSpaceError
        If the disk is full.
    OutputPathError
        If the file cannot be written for another reason.
    """
    path = drawing.profile.path
    text = make_page(drawing) if path.suffix.lower() == ".html" else make_trace(drawing)
    with _file().open(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # the path of a volume may hold what is no UTF-8


def _file() -> SideFile:
    return SideFile(
        word="profile",
        full_name="profile",
        suffixes=SUFFIXES,
        suffix_says="how it is written: a page to look at, or trace events for Perfetto",
        is_ours=_is_profile,
        untouched=("the segmentation itself is not touched by this",),
    )


def make_trace(drawing: Drawing) -> str:
    """Return a profile as JSON of trace events, as Chrome and Perfetto read them; times are in µs."""
    lanes = drawing.lanes
    workers = [*dict.fromkeys(worker for worker, _ in lanes)]
    events: list[dict[str, Any]] = []
    for number, worker in enumerate(workers):
        name = "this process" if worker == drawing.own_worker else worker
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": name}})
    places = {lane: (workers.index(lane[0]), number) for number, lane in enumerate(lanes)}
    for lane, (pid, tid) in places.items():
        events.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": lanes[lane]}})
        events.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}})
    for span in drawing.spans:
        pid, tid = places[span.worker, span.thread]
        arguments = {"block": span.block, "note": span.note}
        events.append(
            {
                "ph": "X",
                "pid": pid,
                "tid": tid,
                "name": span.name,
                "ts": round(span.start_s * 1e6, 1),
                "dur": round(span.seconds * 1e6, 1),
                "args": {key: value for key, value in arguments.items() if value not in (None, "")},
            }
        )
    said = {"kind": SIGNATURE.decode(), "title": drawing.title, **drawing.facts, "profile": drawing.profile.to_object()}
    return json.dumps({"otherData": said, "displayTimeUnit": "ms", "traceEvents": events}) + "\n"
