"""What a short run does beside its work, counted: times say little, and what is done twice costs everybody."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from distributed.diagnostics.plugin import SchedulerPlugin

from tests.tiny import make_pixels, write_image
from unet_deploy.runtime import prepare, segment
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.scheduling import connect


class TaskCount(SchedulerPlugin):
    """Counts the tasks that workers are given, by the name of their function."""

    def __init__(self) -> None:
        self.tasks: Counter[str] = Counter()

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        if finish == "processing":
            self.tasks[str(key).partition("-")[0]] += 1


@pytest.mark.parametrize("planes", [1, 2])
def test_tasks_and_engines_of_a_small_run(tmp_path: Path, fake_artifact: Any, planes: int) -> None:
    """A task for each block, and one for what the pyramid lacks; what is little is done by whoever asks."""
    volume = write_image(tmp_path / "v.ome.zarr", make_pixels((planes, 300, 300)))
    artifact, made = fake_artifact(), list[FakeEngine]()

    def factory(_: Any) -> FakeEngine:
        made.append(FakeEngine(artifact.card.unet))
        return made[-1]

    plan, count = prepare(volume, model=artifact).plan, TaskCount()
    with connect() as client:
        client.cluster.scheduler.add_plugin(count, name="count")
        result = segment(volume, model=artifact, engine_factory=factory, scheduler=client)
    assert result.status == "complete"
    assert plan.n_blocks == planes
    assert count.tasks == {"run_block": planes}
    assert len(made) == 1
