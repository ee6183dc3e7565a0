"""A Dask scheduler and workers as processes of their own on loopback, started as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_S = 120


@dataclass
class DaskProcesses:
    """What was started; `settings` are Dask's own, by the names of its environment variables without their start."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def scheduler_file(self) -> Path:
        """The file that the scheduler writes."""
        return self.folder / "scheduler.json"

    @property
    def scheduler(self) -> subprocess.Popen[bytes]:
        """The scheduler's process."""
        return self.processes[0]

    def start_scheduler(self) -> None:
        """Start it, and wait for its file."""
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        for _ in range(10 * START_S):
            if self.scheduler_file.exists():
                return
            assert self.scheduler.poll() is None, self.log(0)
            time.sleep(0.1)
        raise AssertionError(self.log(0))

    def start_worker(self, *options: str) -> None:
        """Start a worker; it registers later."""
        where = str(self.folder / f"space{len(self.processes)}")
        self._start("worker", "--no-dashboard", "--local-directory", where, *options)

    def log(self, index: int) -> str:
        """Return what a process wrote, 0 for the scheduler."""
        return (self.folder / f"log{index}.txt").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End all, the workers first."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, what: str, *options: str) -> None:
        settings = {f"DASK_DISTRIBUTED__{name}": value for name, value in self.settings.items()}
        with (self.folder / f"log{len(self.processes)}.txt").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", what, "--scheduler-file", str(self.scheduler_file), *options],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings},
                )
            )


@contextmanager
def dask_processes(
    folder: Path, *, workers: int, options: tuple[str, ...] = (), **settings: str
) -> Iterator[DaskProcesses]:
    """Start a scheduler and so many workers, whose files go into a new folder; stop all at the end."""
    folder.mkdir()
    found = DaskProcesses(folder, settings)
    try:
        found.start_scheduler()
        for _ in range(workers):
            found.start_worker(*options)
        yield found
    finally:
        found.stop()
