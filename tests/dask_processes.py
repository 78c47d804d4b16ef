"""A real scheduler and real workers, each a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def until(condition: Callable[[], bool], *, seconds: float = 300.0) -> bool:
    """Wait for a condition; whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@dataclass
class Processes:
    """A scheduler that writes `file`, and its workers."""

    file: Path
    stack: ExitStack
    scheduler: "subprocess.Popen[bytes]"
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def add_worker(self, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a worker with a nanny, which starts it anew when it is killed."""
        arguments = ("worker", "--scheduler-file", str(self.file), "--nthreads", "1", "--no-dashboard")
        worker = start(self.stack, *arguments, *options, **environment)
        self.workers.append(worker)
        return worker

    def computing_pids(self) -> list[int]:
        """Processes that run tasks: the children of the nannies."""
        return [pid for nanny in self.workers for pid in children(nanny.pid)]


def children(pid: int) -> list[int]:
    """Processes that a process has spawned, not its resource tracker."""
    found = psutil.Process(pid).children(recursive=True)
    return [process.pid for process in found if "spawn_main" in " ".join(process.cmdline())]


def start(stack: ExitStack, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    """`dask ARGUMENTS` as a process that ends with the block."""
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/core")]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        env={**os.environ, **settings},
        cwd=tempfile.gettempdir(),  # Python looks for modules in the current folder first
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def dask_processes(folder: Path, *, workers: int, options: Sequence[str] = ()) -> Iterator[Processes]:
    """A scheduler and workers for the time of the block, their scheduler file in a folder."""
    file = folder / "scheduler.json"
    with ExitStack() as stack:
        scheduler = start(
            stack,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(file),
        )
        processes = Processes(file, stack, scheduler)
        assert until(file.is_file)
        for _ in range(workers):
            processes.add_worker("--local-directory", str(folder), *options)
        yield processes
