"""Run tasks on the workers of a Dask cluster. Workers may be killed, replaced and added at any time."""

import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, NamedTuple

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.outcome import Outcome, T, V, WorkerDiedError, attempt

TOKEN = ".brats-seg-token-"
"""Start of the name of a file that a client writes. The client deletes the file after all workers have looked
for it.
"""

_ANSWER_S = 10.0  # how long a scheduler has to answer
_LOOK_S = 0.5  # how often the list of workers is read
_MOST_DEATHS = 3  # of workers that had the same task


class _Call(NamedTuple):
    future: Any
    position: int  # of the task
    n_deaths: int  # of workers that had the task before


@dataclass(frozen=True, eq=False)
class Cluster:
    """A connection to a running cluster, created by `open_cluster`, which explains the fields.

    `sound` holds for each worker address whether the worker passed the checks. `_told` holds the messages
    that were already given.
    """

    client: Any
    address: str
    needs: tuple[Path, ...]
    shared: Path | None
    say: Callable[[str], None]
    sound: dict[str, bool] = field(default_factory=dict)
    _told: dict[str, bool] = field(default_factory=dict)

    def map_unordered(self, function: Callable[[T], V], tasks: Sequence[T]) -> Generator[Outcome[T, V]]:
        """As `engine.map_unordered`. A worker has one task at a time, so a lost worker affects one task."""
        queue = deque((position, 0) for position in range(len(tasks)))
        busy: dict[str, _Call] = {}
        workers, looked_s, here = self._workers(), time.monotonic(), Path.cwd()
        try:
            while queue or busy:
                for worker, takes_tasks in workers.items():
                    if queue and takes_tasks and worker not in busy:
                        position, n_deaths = queue.popleft()
                        job = _serve, function, tasks[position], position, here
                        future = self.client.submit(*job, workers=[worker], pure=False)
                        busy[worker] = _Call(future, position, n_deaths)
                self._wait(busy)
                lost = []
                for worker, call in [(w, c) for w, c in busy.items() if c.future.done()]:
                    del busy[worker]
                    if outcome := self._outcome(call, tasks[call.position]):
                        yield outcome
                    else:
                        lost.append(call)
                if time.monotonic() - looked_s >= _LOOK_S:
                    workers, looked_s = self._workers(), time.monotonic()
                    lost += [busy.pop(worker) for worker in busy.keys() - workers.keys()]
                    for worker in self._stuck(workers, busy):
                        stuck = busy.pop(worker)
                        self.client.cancel([stuck.future], force=True)
                        queue.appendleft((stuck.position, stuck.n_deaths))
                for call in lost:
                    self.client.cancel([call.future], force=True)
                    if call.n_deaths + 1 < _MOST_DEATHS:
                        queue.appendleft((call.position, call.n_deaths + 1))
                    else:
                        how = WorkerDiedError(f"ended {_MOST_DEATHS} workers: killed, or out of memory")
                        yield Outcome(tasks[call.position], error=how, position=call.position)
        finally:
            with suppress(Exception):
                self.client.cancel([call.future for call in busy.values()], force=True)

    def _wait(self, busy: dict[str, _Call]) -> None:
        """Wait until a task ends, or until the workers must be checked again."""
        if not busy:
            time.sleep(_LOOK_S)
            return
        distributed, futures = import_module("distributed"), [call.future for call in busy.values()]
        with suppress(distributed.TimeoutError, CancelledError):
            distributed.wait(futures, timeout=_LOOK_S, return_when="FIRST_COMPLETED")

    def _outcome(self, call: _Call, task: T) -> Outcome[T, Any] | None:
        """The outcome of a future; None if its worker lost the value or the scheduler was restarted."""
        try:
            return call.future.result(timeout=_ANSWER_S)
        except TimeoutError:
            return None
        except CancelledError:
            self._workers()  # raises if the scheduler is gone
            return None
        except Exception as error:  # the value cannot be sent, or Dask gave up the task
            return Outcome(task, error=error, position=call.position)

    def _workers(self) -> dict[str, bool]:
        """The workers that passed the checks, and whether each accepts tasks. Dask pauses a worker that has
        too little memory. New workers are checked.
        """
        with self._asking():
            present = set(self.client.nthreads())  # raises if the scheduler is gone
            answer = self.client.scheduler_info(n_workers=-1).get("workers", {})
        for worker, problem in self.check(present - self.sound.keys()).items():
            self.sound[worker] = not problem
            if problem:
                self.say(f"{problem}; this worker is left out")
        sound = [name for name in present if self.sound[name]]
        workers = {name: answer.get(name, {}).get("status") == "running" for name in sound}
        if workers and not any(workers.values()) and self._told.get("paused") is not True:
            self.say(
                "cluster: Dask has paused all workers because of too little memory; waiting for a worker"
            )
        self._told["paused"] = bool(workers) and not any(workers.values())
        return workers

    def _stuck(self, workers: dict[str, bool], busy: dict[str, _Call]) -> list[str]:
        """Paused workers that will not start the task that was sent to them."""
        paused = [worker for worker in busy if not workers[worker]]
        if not paused:
            return []
        with self._asking():
            begun = self.client.processing(paused)
        return [worker for worker in paused if busy[worker].future.key not in begun.get(worker, ())]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise `InputError` if the scheduler is gone."""
        try:
            yield
        except (OSError, CancelledError) as error:
            raise InputError(
                f"{self.address}: the scheduler has ended ({type(error).__name__}); start it and give the "
                "same command again, finished work is kept"
            ) from None

    def check(self, workers: set[str]) -> dict[str, str]:
        """The problem of each of some workers in one line; "" for a worker without a problem."""
        tokens = [folder / f"{TOKEN}{secrets.token_hex(8)}" for folder in (self.shared,) if folder]
        with ExitStack() as stack:
            for token in tokens if workers else ():
                try:
                    token.touch()
                except OSError as error:
                    raise InputError(
                        f"{token.parent}: cannot be written ({error.strerror}); correct it and give the same "
                        "command again"
                    ) from None
                stack.callback(token.unlink, missing_ok=True)
            run = {"workers": list(workers), "on_error": "return"}
            with self._asking():
                answers = self.client.run(_describe, [*self.needs, *tokens], **run) if workers else {}
        return {worker: _problem(worker, answers.get(worker, "it has ended")) for worker in workers}


@contextmanager
def open_cluster(
    address: str | None,
    *,
    needs: Sequence[Path] = (),
    shared: Path | None = None,
    workers: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Cluster | None]:
    """A checked connection to a Dask cluster during the block; None without an address.

    Args:
        address: "tcp://host:8786" of a scheduler, the path of its scheduler file, or "local" to start a
            scheduler and workers on this machine.
        needs: folders or files that every worker must be able to read.
        shared: folder to which all processes write; created if it does not exist. Every worker must see a
            file that is written there.
        workers: number of workers for "local"; 0 means one for each core.
        say: receives the address of the dashboard, and the problems of workers that join later.

    Raises:
        UsageError: Dask is not installed, no scheduler answers within 10 seconds, or a scheduler or worker
            has another version or does not see the folders.
    """
    if not address:
        yield None
        return
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise UsageError(f"{address}: Dask is not installed; pip install 'brats-seg[cluster]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it prints ten lines for each lost worker
    with _connected(distributed, address, workers) as client:
        scheduler_version = client.get_versions()["scheduler"]["packages"]["distributed"]
        if scheduler_version != distributed.__version__:
            what = (
                f"the scheduler has distributed {scheduler_version}, this process {distributed.__version__}"
            )
            raise UsageError(f"{address}: {what}; install the same version")
        if shared:
            shared.mkdir(parents=True, exist_ok=True)
        needed = tuple(path.absolute() for path in needs)
        cluster = Cluster(client, address, needed, shared.absolute() if shared else None, say)
        if problems := list(filter(None, cluster.check(set(client.nthreads())).values())):
            raise UsageError(*problems)
        say(f"cluster: workers {len(client.nthreads())}, dashboard {client.dashboard_link}")
        yield cluster


@contextmanager
def _connected(distributed: Any, address: str, workers: int) -> Iterator[Any]:
    with ExitStack() as stack:
        if address == "local":
            options = {"n_workers": workers or None, "threads_per_worker": 1, "dashboard_address": ":0"}
            reached = stack.enter_context(distributed.LocalCluster(**options))
        else:
            reached = address if "://" in address else _address_in(Path(address))
        try:
            client = stack.enter_context(distributed.Client(reached, timeout=_ANSWER_S))
        except (OSError, ValueError) as error:
            what = f"no scheduler answers within {_ANSWER_S:.0f} s ({type(error).__name__})"
            how = "start a scheduler with `dask scheduler` and workers with `dask worker --nworkers auto`"
            raise UsageError(f"{address}: {what}; {how}") from None
        yield client


def _address_in(file: Path) -> str:
    """The address that a scheduler wrote into its file."""
    if not file.is_file():
        raise UsageError(f"{file}: is not a file; give tcp://HOST:PORT, a scheduler file, or local")
    try:
        return str(json.loads(file.read_bytes())["address"])
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(f"{file}: is not a scheduler file of Dask; give the file that it wrote") from None


def _describe(paths: Sequence[Path]) -> dict[str, Any]:
    """The versions of this process, and the paths that it does not see."""
    versions = {name: version(name) for name in ("brats-seg", "torch", "distributed")}
    versions["Python"] = python_version()
    return {"versions": versions, "absent": [path for path in paths if not path.exists()]}


def _problem(worker: str, found: Any) -> str:
    """The problem of a worker in one line, from its own description or its error."""
    if not isinstance(found, dict):
        return f"worker {worker}: cannot run brats-seg ({found}); install this version there"
    for name, own_version in _describe([])["versions"].items():
        if (worker_version := found["versions"][name]) != own_version:
            return (
                f"worker {worker}: has {name} {worker_version}, this process {own_version}; install the same "
                "version"
            )
    for path in found["absent"]:
        folder = path.parent if path.name.startswith(TOKEN) else path
        return f"worker {worker}: does not see {folder}; all workers need one shared file system"
    return ""


def _serve(function: Callable[[Any], Any], task: Any, position: int, folder: Path) -> Outcome[Any, Any]:
    """Run a task in the folder of the client, so that relative paths are those of the client."""
    with suppress(OSError):
        os.chdir(folder)
    return attempt(function, task, position)
