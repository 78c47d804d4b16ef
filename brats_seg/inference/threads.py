"""Threads that run networks side by side, and stop when the run does."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def computing_threads(networks: Sequence[nn.Module], *, n: int) -> Iterator[Executor]:
    """Threads to run networks in. Of several, each has one core.

    In a pass that is spread over the cores all wait for the one that is held up by reading or writing: with
    two cores a folder of scans took 1.6 times as long as its networks alone.

    What ends the block early (Ctrl-C, an error) also ends the work under way: each next pass of a network
    raises `CancelledError`. A case takes up to a minute by windows, and several are under way.
    """
    n_cores = torch.get_num_threads()
    all_started = threading.Barrier(n + 1)
    ended = threading.Event()

    def start() -> None:
        torch.get_num_threads()  # torch sets a thread's number at its first use
        if n > 1:
            torch.set_num_threads(1)
        all_started.wait()

    def refuse(network: nn.Module, inputs: object) -> None:
        if ended.is_set():
            raise CancelledError

    with ExitStack() as hooks, ThreadPoolExecutor(n, "computing") as pool:
        for network in networks:
            hooks.callback(network.register_forward_pre_hook(refuse).remove)
        try:
            for _ in range(n):
                pool.submit(start)
            all_started.wait()
        finally:
            all_started.abort()  # interrupted here, those that wait would wait forever
            torch.set_num_threads(n_cores)  # of this thread, and of those to come, which got the 1 too
        try:
            yield pool
        except BaseException:
            ended.set()
            raise
