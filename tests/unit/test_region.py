"""A region's text means what it says, and what cannot be meant is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_deploy.errors import UsageError
from unet_deploy.geometry import Interval
from unet_deploy.runtime.plan import Extents
from unet_deploy.runtime.region import Region, parse_region

EXTENTS = Extents(t=2, z=30, y=1000, x=2000)
intervals = st.tuples(st.integers(0, 10**12), st.integers(1, 10**12)).map(lambda n: Interval(n[0], n[0] + n[1]))


@given(parts=st.dictionaries(st.sampled_from("tzyx"), intervals, min_size=1))
def test_a_region_is_read_back_from_its_text(parts: dict[str, Interval]) -> None:
    region = Region(**parts)
    assert parse_region(str(region)) == region
    assert {axis: region.along(axis) for axis in parts} == parts


def test_one_number_is_one_plane_and_spaces_are_free() -> None:
    assert parse_region("z=5") == Region(z=Interval(5, 6))
    assert parse_region(" x = 3 : 7 , t=0") == Region(t=Interval(0, 1), x=Interval(3, 7))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"'' does not begin with one of t=, z=, y=, x="),
        ("z", r"z= is not a number, or two such as z=512:1024"),
        ("q=1:2", r"'q=1:2' does not begin with one of"),
        ("zy=1:2", r"'zy=1:2' does not begin with one of"),
        ("z=1:2,", r"'' does not begin with one of"),
        ("z=1:2,z=3", r"z came twice"),
        ("c=0", r"c is no axis of a region; channels are chosen by --channel"),
        ("y=512:", r"y=512: is not a number, or two such as y=512:1024"),
        ("y=-1:5", r"y=-1:5 is not a number, or two"),
        ("y=1.5", r"y=1.5 is not a number, or two"),
        ("y=٣:٤", r"is not a number, or two"),
        ("y=" + "9" * 5000, r"is not a number, or two"),
        ("y=7:7", r"y=7:7 is empty; its end must be larger than its start"),
        ("y=9:7", r"y=9:7 is empty; its end must be larger than its start"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=rf"one such as z=0:10,y=512:1024 was expected\n(.*\n)*.*{problem}") as caught:
        parse_region(text)
    assert caught.value.fix == "--region z=0:10,y=512:1024"


def test_all_problems_are_named_together() -> None:
    with pytest.raises(UsageError, match=r"the region 'z=2:1,c=0,y=5' came") as caught:
        parse_region("z=2:1,c=0,y=5")
    assert len(caught.value.details) == 2


def test_a_region_inside_the_volume_passes() -> None:
    Region().require_inside(EXTENTS)
    parse_region("t=1,z=0:30,y=999,x=0:2000").require_inside(EXTENTS)


def test_a_region_that_leaves_the_volume_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^the region z=20:40,y=900:1001 is not inside the volume\n  z 20:40"
    ) as caught:
        parse_region("y=900:1001,z=20:40").require_inside(EXTENTS)
    assert caught.value.details == (
        "z 20:40 came, the volume has z 0:30",
        "y 900:1001 came, the volume has y 0:1000",
    )
    assert caught.value.fix == "--region z=20:30,y=900:1000"
    with pytest.raises(UsageError, match=r"t 2:3 came, the volume has t 0:2\n  fix: choose a region inside the volume"):
        parse_region("t=2").require_inside(EXTENTS)
