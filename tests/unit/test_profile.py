"""What a profile keeps and adds up, where its file may go, and what is in it."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import no_file_above
from unet_deploy.errors import NoSpaceError, OutputExistsError, OutputPathError, UsageError
from unet_deploy.runtime import profile as module
from unet_deploy.runtime.profile import KEPT_SPANS, Drawing, Timeline, set_apart
from unet_deploy.runtime.profile_file import check_profile_path, write_profile
from unet_deploy.runtime.timeline import DEVICE, HELPER, Mark, Recorded, Span, this_worker, time_of_day
from unet_deploy.runtime.timeline_page import GROUPS, choose_step, nested


def recorded(
    *marks: Mark, block: int | None = 0, worker: str | None = None, base: float = 0.0, **others: Any
) -> Recorded:
    """Return marks in s from `base` on, by the clock of this process."""
    return Recorded(
        worker=worker or this_worker(),
        thread="pool-1",
        epoch_s=time_of_day(base),
        block=block,
        marks=marks,
        **others,
    )


def tile(start: float, stop: float) -> dict[str, Any]:
    return {"device": (("infer", start, stop, ""),)}


def finish(timeline: Timeline, *, part: str | None = None) -> Drawing:
    return timeline.finish(title="brain & <b>more</b>", facts={"volume": "a<b>.zarr"}, part=part)


@pytest.fixture
def drawing(tmp_path: Path) -> Drawing:
    """Return that of two blocks, one of which another worker made."""
    base = time.perf_counter() - 8
    timeline = Timeline(tmp_path / "p.html", started=base + 1)
    timeline.take(
        recorded(
            ("decode", 2.0, 3.0, ""),
            ("read", 2.0, 3.5, ""),
            ("infer", 4.0, 6.0, ""),
            ("write", 6.0, 7.0, ""),
            **tile(4.0, 6.0),
            base=base,
            helpers=(("write labels", 6.0, 6.8, ""), ("write labels", 6.2, 6.9, "")),
        )
    )
    marks = ("infer", 5.0, 6.0, "<last>"), ("wait", 4.0, 5.0, "")
    timeline.take(recorded(*marks, block=1, worker="far:1", base=base, **tile(5, 6)))
    return finish(timeline)


# What is kept, and what it adds up to.


def test_stages_are_counted_without_what_is_nested_in_them(drawing: Drawing) -> None:
    profile = drawing.profile
    assert {stage.name: (stage.count, pytest.approx(stage.seconds)) for stage in profile.stages} == {
        "decode": (1, 1.0),
        "read": (1, 0.5),
        "infer": (2, 3.0),
        "wait": (1, 1.0),
        "write": (1, 1.0),
        "write labels": (2, 1.5),
    }
    assert [stage.seconds for stage in profile.stages] == sorted((s.seconds for s in profile.stages), reverse=True)
    assert (profile.device.workers, profile.n_spans, profile.n_left_out) == (2, 10, 0)
    assert profile.device.busy_s == pytest.approx(3.0)


def test_spans_are_in_seconds_from_the_start(drawing: Drawing) -> None:
    decode = next(span for span in drawing.spans if span.name == "decode")
    assert (decode.start_s, decode.stop_s) == (pytest.approx(1.0), pytest.approx(2.0))


def test_lanes_come_by_worker_and_have_plain_names(drawing: Drawing) -> None:
    own = this_worker()
    assert drawing.lanes == {
        (own, DEVICE): DEVICE,
        (own, "pool-1"): "thread 1",
        (own, "helper"): "helper",
        (own, "helper 2"): "helper 2",
        ("far:1", DEVICE): DEVICE,
        ("far:1", "pool-1"): "thread 1",
    }


@pytest.mark.parametrize("thread", [HELPER, DEVICE])
def test_what_overlaps_shares_lanes_as_far_as_it_can(thread: str) -> None:
    def made(start: float, stop: float, worker: str = "w") -> Span:
        return Span(name="write labels", worker=worker, thread=thread, start_s=start, stop_s=stop)

    spans = [made(0, 2), made(1, 3), made(2, 4), made(5, 6), made(0, 9, "v")]
    assert sorted((span.worker, span.thread, span.start_s) for span in set_apart(spans)) == [
        ("v", thread, 0),
        ("w", thread, 0),
        ("w", thread, 2),
        ("w", thread, 5),
        ("w", f"{thread} 2", 1),
    ]


def test_batches_on_their_way_together_do_not_make_a_staircase(tmp_path: Path) -> None:
    """An engine has up to three, one after the other for hours: each would lie below the one that it overlaps."""
    timeline = Timeline(tmp_path / "p.html", started=time.perf_counter())
    timeline.take(recorded(device=tuple(("infer", i, i + 2.5, "") for i in range(100))))
    found = finish(timeline)
    assert [*found.lanes.values()] == ["device", "device 2", "device 3"]
    for _, thread in found.lanes:
        assert {depth for _, depth in nested([span for span in found.spans if span.thread == thread])} == {0}
    assert found.profile.stages == ()  # what threads do is counted, and none of them did anything
    assert found.profile.device.busy_s == pytest.approx(101.5)


def test_the_runs_own_thread_is_asked_where_it_is(tmp_path: Path) -> None:
    from unet_deploy.runtime.timeline import span

    with Timeline(tmp_path / "p.html", started=0.0).recording() as timeline:
        with span("connect"):
            pass
        timeline.take()
        timeline.take(recorded(("read", 2.0, 3.0, "")))
        with span("finish"):
            pass
        found = finish(timeline)
    assert {item.name for item in found.profile.stages} == {"connect", "read", "finish"}
    assert [*found.lanes.values()] == ["main", "thread 1"]


def test_of_a_long_run_the_middle_is_left_out_and_still_counted(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "p.html", started=0.0)
    blocks, each = 3 * KEPT_SPANS // 10, 10
    for block in range(blocks):
        timeline.take(
            recorded(*(("infer", block + i / 10, block + i / 10 + 0.05, "") for i in range(each)), block=block)
        )
    profile = finish(timeline).profile
    assert profile.n_spans == blocks * each == 3 * KEPT_SPANS
    assert profile.n_left_out == 2 * KEPT_SPANS
    kept = finish(timeline).spans
    assert len(kept) == KEPT_SPANS
    numbers = sorted({span.block for span in kept if span.block is not None})
    half = KEPT_SPANS // 2 // each
    assert numbers == [*range(half), *range(blocks - half, blocks)]
    (infer,) = profile.stages
    assert (infer.count, infer.seconds) == (blocks * each, pytest.approx(blocks * each * 0.05))


def test_a_worker_whose_clock_is_wrong_is_moved_to_where_its_reports_came(tmp_path: Path) -> None:
    started = time.perf_counter()
    timeline = Timeline(tmp_path / "p.html", started)
    mine = recorded(("infer", started, started + 0.001, ""), **tile(started, started + 0.001))
    timeline.take(replace(mine, worker="ahead:1", epoch_s=mine.epoch_s + 3600))
    timeline.take(replace(mine, worker="behind:1", epoch_s=mine.epoch_s - 3600))
    timeline.take(replace(mine, worker="right:1"))
    timeline.take(replace(mine, worker="right:1", epoch_s=mine.epoch_s - 3600))  # one that came late moves nothing
    found = finish(timeline)
    starts = {worker: min(abs(s.start_s) for s in found.spans if s.worker == worker) for worker, _ in found.lanes}
    assert all(start < 1.0 for start in starts.values()), starts
    assert starts["right:1"] == pytest.approx(0.0, abs=1e-6)


# Where it may go.


@pytest.mark.parametrize("name", ["p.html", "p.HTML", "p.json"])
def test_a_place_is_let_pass(tmp_path: Path, name: str) -> None:
    check_profile_path(tmp_path / name, overwrite=False)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["p.svg", "p", "p.html.gz", ".html"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"ends in .*, \.html or \.json was expected") as caught:
        check_profile_path(tmp_path / name, overwrite=True)
    assert ".html" in caught.value.fix


def test_a_place_in_a_missing_folder_or_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match=r"the folder of the profile .*p\.html does not exist"):
        check_profile_path(tmp_path / "no" / "p.html", overwrite=True)
    store = tmp_path / "v.zarr"
    store.mkdir()
    (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(OutputPathError, match=r"lies inside the Zarr store") as caught:
        check_profile_path(store / "p.html", overwrite=True)
    assert caught.value.fix == f"write it to {tmp_path / 'p.html'}"
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OutputPathError, match=r"the profile .*folder\.json is no file"):
        check_profile_path(tmp_path / "folder.json", overwrite=True)


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_what_exists_is_replaced_only_if_that_was_asked_for_or_an_earlier_run_wrote_it(
    drawing: Drawing, suffix: str
) -> None:
    path = drawing.profile.path.with_suffix(suffix)
    write_profile(replace(drawing, profile=replace(drawing.profile, path=path)))
    with pytest.raises(OutputExistsError, match=r"the profile .* exists\n  nothing was written") as caught:
        check_profile_path(path, overwrite=False)
    assert caught.value.fix == "choose another name, or replace it with --overwrite"
    check_profile_path(path, overwrite=True)
    check_profile_path(path, overwrite=False, goes_on=True)
    path.write_text("my own page")
    with pytest.raises(OutputExistsError, match=r"exists") as caught:
        check_profile_path(path, overwrite=False, goes_on=True)
    assert caught.value.fix == "choose another name, or remove it yourself: it is no profile"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_full_disk_is_named(drawing: Drawing) -> None:
    with no_file_above(1000), pytest.raises(NoSpaceError, match=r"while writing the profile .*p\.html"):
        write_profile(drawing)
    assert [*drawing.profile.path.parent.iterdir()] == []


def test_a_place_that_went_away_is_named(drawing: Drawing, tmp_path: Path) -> None:
    gone = replace(drawing, profile=replace(drawing.profile, path=tmp_path / "gone" / "p.html"))
    with pytest.raises(OutputPathError, match=r"cannot be written: No such file(.|\n)*segmentation itself is not"):
        write_profile(gone)


# What is in it.


class Page(HTMLParser):
    """Reads a page: its text, and the attributes of its elements by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: dict[str, list[dict[str, str | None]]] = {}
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append(dict(attrs))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(drawing: Drawing) -> tuple[str, Page]:
    write_profile(drawing)
    text = drawing.profile.path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_needs_nothing_from_outside(drawing: Drawing) -> None:
    text, page = page_of(drawing)
    assert not page.open  # whatever was opened was closed
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", text)
    policy = next(item for item in page.elements["meta"] if "content" in item)
    assert str(policy["content"]).startswith("default-src 'none'")


def test_what_comes_from_a_volume_is_only_text(drawing: Drawing) -> None:
    text, page = page_of(drawing)
    assert "brain &amp; &lt;b&gt;more" in text
    assert "<b>more" not in text
    assert "a<b>.zarr" in page.words
    assert any("<last>" in words for words in page.words)


def test_each_span_is_a_bar_at_its_time_with_words(drawing: Drawing) -> None:
    _, page = page_of(drawing)
    bars = [item for item in page.elements["rect"] if item.get("x") is not None]
    assert len(bars) == len(drawing.spans) == 10
    assert any(words.startswith("decode, block 0: 1000.00 ms from 1.0000 s") for words in page.words)
    ends = [float(item["x"] or 0) + float(item["width"] or 0) for item in bars]
    view = next(item for item in page.elements["svg"] if item.get("id") == "bars")["viewbox"]
    assert max(ends) <= float(str(view).split()[2])
    for name in ("device", "thread 1", "helper", "helper 2"):
        assert name in page.words


def test_the_legend_says_what_is_drawn(drawing: Drawing) -> None:
    _, page = page_of(drawing)
    for group in ("infer", "read", "write", "wait"):
        assert GROUPS[group][1] in "".join(page.words)
    assert GROUPS["prepare"][1] not in "".join(page.words)
    colours = [colour for colour, _, _ in GROUPS.values()]
    assert len({*colours}) == len(colours)
    names = [name for _, _, names in GROUPS.values() for name in names]
    assert len({*names}) == len(names)


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_a_name_that_is_no_unicode_is_written_all_the_same(drawing: Drawing, suffix: str) -> None:
    """Linux allows any bytes in a name; the run is over then, and its result must be said."""
    path = drawing.profile.path.with_suffix(suffix)
    profile = replace(drawing.profile, path=path)
    write_profile(replace(drawing, facts={"volume": "brain\udcff.zarr"}, profile=profile))
    assert "brain\\udcff.zarr" in path.read_text(encoding="utf-8")


def test_the_page_says_what_it_leaves_out(drawing: Drawing) -> None:
    profile = replace(drawing.profile, n_spans=50_000, n_left_out=30_000, part="7 blocks were done <before>")
    text, _ = page_of(replace(drawing, profile=profile))
    assert "30,000 of 50,000 spans, those in the middle of the run, are not drawn" in text
    assert "7 blocks were done &lt;before&gt;" in text


def test_a_run_of_nothing_has_a_page(tmp_path: Path) -> None:
    _, page = page_of(finish(Timeline(tmp_path / "p.html", started=0.0)))
    assert not page.open


def test_ticks_and_rows() -> None:
    assert [choose_step(end) for end in (1e-6, 3.0, 14.0, 7200.0)] == pytest.approx([1e-7, 0.5, 1.0, 1000.0])
    spans = [Span(name=n, worker="w", thread="1", start_s=a, stop_s=b) for n, a, b in (("b", 1, 2), ("a", 0, 3))]
    spans.append(replace(spans[0], name="c", start_s=3.0, stop_s=4.0))
    assert [(span.name, depth) for span, depth in nested(spans)] == [("a", 0), ("b", 1), ("c", 0)]


def test_trace_events_for_perfetto(drawing: Drawing) -> None:
    path = drawing.profile.path.with_suffix(".json")
    write_profile(replace(drawing, profile=replace(drawing.profile, path=path)))
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["otherData"]["kind"] == "unet-deploy profile"
    assert found["otherData"]["profile"]["stages"]["infer"] == {"count": 2, "seconds": pytest.approx(3.0)}
    events = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(drawing.spans)
    decode = next(event for event in events if event["name"] == "decode")
    assert (decode["ts"], decode["dur"]) == (pytest.approx(1e6, abs=1), pytest.approx(1e6, abs=1))
    assert decode["args"] == {"block": 0}
    said = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in found["traceEvents"]
        if event["name"].endswith("_name")
    }
    assert said[0, None] == "this process"
    assert said[1, None] == "far:1"
    assert said[decode["pid"], decode["tid"]] == "thread 1"
    for event in events:
        assert said[event["pid"], event["tid"]]


def test_every_span_that_the_package_makes_has_a_colour() -> None:
    folder = Path(module.__file__).parent
    found = {
        name
        for file in folder.rglob("*.py")
        for name in re.findall(r'(?:with|,) span\("([a-z ]+)"', file.read_text(encoding="utf-8"))
    }
    assert len(found) > 15
    assert found - {name for _, _, names in GROUPS.values() for name in names} == set()
