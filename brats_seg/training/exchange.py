"""Communication between the ranks of one training: sums of gradients, and one small message."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime


class Exchange:
    """A network whose gradients are summed over the ranks during the backward pass.

    Attributes:
        network: the module to call in training. With one rank this is the network itself, or its compiled
            form.
    """

    def __init__(self, network: nn.Module, *, runtime: Runtime) -> None:
        """Set up the exchange for a network on the device of the runtime. Every rank must have the same
        network.
        """
        self._runtime = runtime
        self._shared: DistributedDataParallel | None = None
        if runtime.world_size > 1:
            on_gpu = runtime.device.type == "cuda"
            # A 1x1 kernel has two memory layouts with the same bytes. The sum is the same in both.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers
                warnings.simplefilter("ignore", FutureWarning)
                self._shared = DistributedDataParallel(
                    network,
                    device_ids=[runtime.device.index] if on_gpu else None,
                    broadcast_buffers=False,  # on a CPU each rank keeps its own batch-norm statistics
                    gradient_as_bucket_view=True,
                )
            self._shared.register_comm_hook(None, _sum)
        called = self._shared or network
        self.network: Any = called
        if runtime.compile != "never":
            self.network = torch.compile(
                called, mode="reduce-overhead" if runtime.compile == "graphs" else None
            )

    def part(self, which: Literal["last", "earlier"]) -> AbstractContextManager[Any]:
        """A context for the passes of one part of a batch. The gradients are exchanged with the last part."""
        if self._shared is None or which == "last":
            return nullcontext()
        return self._shared.no_sync()

    def share(self, loss: Tensor, wishes: tuple[bool, ...]) -> tuple[Tensor, tuple[bool, ...]]:
        """The loss (a scalar) summed over all ranks, and the wishes that at least one rank has.

        On a CPU this is one small message. On GPUs the wishes are exchanged between the CPUs, because reading
        them from a GPU would make the GPU wait.
        """
        if self._runtime.world_size == 1:
            return loss, wishes
        gathered = torch.tensor(wishes, dtype=loss.dtype)
        if loss.device.type == "cpu":
            message = self._runtime.sum_over_ranks(torch.cat([loss.reshape(1), gathered]))
            total, granted = message[0], message[1:]
        else:
            total, granted = (self._runtime.sum_over_ranks(t.clone()) for t in (loss, gathered))
        return total, tuple(bool(n) for n in granted)


def check_ranks(batch_size: int, *, world_size: int) -> None:
    """Raise `UsageError` if a rank would have no example of a batch."""
    if batch_size < world_size:
        raise UsageError(
            f"training.batch_size {batch_size}: {world_size} ranks need one example each; start at most "
            f"{batch_size} ranks, or raise the batch size"
        )


def _sum(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
    """Sum the gradients instead of the mean of `DistributedDataParallel`, because the loss of a rank is
    already its share of the loss of the batch.
    """
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])
