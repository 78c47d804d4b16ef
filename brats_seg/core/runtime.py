"""Device, rank, precision, threads and memory allocator of a run."""

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from brats_seg.core.cores import n_cores
from brats_seg.core.errors import UsageError

T = TypeVar("T")
Precision = Literal["auto", "float32", "tf32", "bf16", "fp16"]
Compile = Literal["never", "always", "graphs"]


@dataclass(frozen=True)
class Runtime:
    """The device and precision with which networks run; one value for each process.

    Attributes:
        device: the device of this process.
        dtype_autocast: bfloat16 or float16 for mixed precision, None for plain float32.
        n_threads: number of threads of torch on a CPU.
        rank, world_size: number of this process and number of processes that `torchrun` started; 0 and 1
            without it.
        tf32: whether a CUDA device multiplies float32 numbers with a mantissa of 10 bits (TF32).
        compile: "always" compiles networks for training; "graphs" also records CUDA graphs of them.
        cudnn_benchmark: whether cuDNN tests its algorithms; "auto" does this on a CUDA device.
    """

    device: torch.device
    dtype_autocast: torch.dtype | None = None
    n_threads: int = 1
    rank: int = 0
    world_size: int = 1
    tf32: bool = False
    compile: Compile = "never"
    cudnn_benchmark: Literal["auto", "never", "always"] = "auto"

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the files of the run. Only rank 0 does."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which networks run with the precision of this runtime."""
        if self.dtype_autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype_autocast)

    @contextmanager
    def one_shape(self) -> Iterator[None]:
        """A context in which every pass has the same shape. cuDNN tests its algorithms in the first pass and
        keeps the fastest, depending on `cudnn_benchmark`.
        """
        # not torch.backends.cudnn.flags: it turns TF32 on
        before = torch.backends.cudnn.benchmark
        wanted = self.cudnn_benchmark
        torch.backends.cudnn.benchmark = wanted == "always" or (
            wanted == "auto" and self.device.type == "cuda"
        )
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def place(self, network: nn.Module) -> nn.Module:
        """The network on this device, in memory format channels last. Convolutions are fastest in this
        format, and batches of a bank have it.

        Several CUDA ranks share batch statistics. CPU ranks keep their own, because torch has no synchronized
        batch norm for CPUs.
        """
        if self.world_size > 1 and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = network.to(self.device)
        for parameter in network.parameters():
            if parameter.dim() in _CHANNELS_LAST:
                parameter.data = parameter.data.contiguous(memory_format=_CHANNELS_LAST[parameter.dim()])
        return network

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        return [value] if self.world_size == 1 else gather_from_ranks(value)

    def any_rank(self, wish: bool) -> bool:
        """Whether at least one rank has the wish. Every rank gets the same answer."""
        return any(self.gather(wish))

    def share_buffers(self, network: nn.Module) -> None:
        """Copy the batch-norm statistics of rank 0 to every rank, so that all ranks evaluate the same
        network.
        """
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def start_runtime(
    *,
    device: str = "auto",
    precision: Precision = "auto",
    threads: int = 0,
    compile: Compile = "never",
    cudnn_benchmark: Literal["auto", "never", "always"] = "auto",
) -> Runtime:
    """Set up this process and return its runtime.

    Args:
        device: "auto" (CUDA if there is a CUDA device, else the CPU), "cpu", "cuda" or "cuda:N".
        precision: "auto" is bf16 on a device with native bf16 multiplication, else fp16 on a CUDA device and
            float32 on a CPU. "float32" is full float32. "tf32" is torch's default for convolutions.
        threads: number of threads on a CPU; 0 for the number of torch at the first call (its default: the
            cores, or OMP_NUM_THREADS).
        compile, cudnn_benchmark: see `Runtime`.

    Raises:
        UsageError: the device or precision is not available.
    """
    set_allocator()
    rank, world_size = _join_ranks(device)
    chosen = _find_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    cudnn: Any = torch.backends.cudnn  # the type stubs of torch lack its attributes
    kinds: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    for kind in kinds:
        kind.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    own_threads = _own_threads()
    torch.set_num_threads(threads or own_threads)
    return Runtime(
        device=chosen,
        dtype_autocast=_find_precision(precision, chosen),
        n_threads=torch.get_num_threads(),
        rank=rank,
        world_size=world_size,
        tf32=precision == "tf32",
        compile=compile,
        cudnn_benchmark=cudnn_benchmark,
    )


@cache
def _own_threads() -> int:
    """The default number of threads of torch, read once before a run changes it."""
    return torch.get_num_threads()


def n_workers(asked: int, *, device: str = "cpu") -> int:
    """The number of processes: `asked`, or if it is 0, one for each GPU that the device means, or without a
    GPU one for each core that this process may use.
    """
    return asked or (torch.cuda.device_count() if _on_gpus(device) else n_cores())


def worker_device(device: str, *, worker: int) -> str:
    """The device of the n-th of several workers: the workers use the GPUs in turn. A device with a number is
    kept.
    """
    return f"cuda:{worker % torch.cuda.device_count()}" if _on_gpus(device) else device


def _on_gpus(device: str) -> bool:
    return device in ("auto", "cuda") and torch.cuda.is_available()


def set_allocator() -> bool:
    """Prevent glibc from returning large memory blocks to the kernel after each use. Return True if this
    could be set.

    Every step of a network frees and allocates the same large arrays, and new memory pages are the slowest
    part of this. Without new pages the steps of a U-Net were 1.5 times faster. With another C library than
    glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt: Callable[[int, int], int] = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings: Sequence[tuple[int, int]] = (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 256 << 20),
    )
    return all([mallopt(name, value) == 1 for name, value in settings])


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass
class StopRequest:
    """Whether a signal has asked this process to stop."""

    asked: bool = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """During the block, record SIGTERM and Ctrl-C instead of ending the process. A second Ctrl-C interrupts
    immediately.

    Only the main thread receives signals. In another thread nothing is caught.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ranks() -> tuple[int, int]:
    """Number of this process and number of processes that `torchrun` started; (0, 1) without `torchrun`."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def gather_from_ranks(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank. The process must have joined the group before."""
    values: list[Any] = [None] * ranks()[1]
    dist.all_gather_object(values, value, group=_patient_group())
    return values


@cache
def _patient_group() -> dist.ProcessGroup | None:
    """The group of ranks without a time limit for waiting: one rank may need hours longer for its cases."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


def _join_ranks(device: str) -> tuple[int, int]:
    """Rank and number of ranks. If `torchrun` started this process, it joins the group of processes."""
    if ranks()[1] == 1:
        return 0, 1
    if not dist.is_initialized():
        on_cuda = device != "cpu" and torch.cuda.is_available()
        # gloo in addition to nccl: messages between CPUs do not make the GPU wait
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
        _patient_group()  # all ranks create it here, because all are at the same point
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size()


def _find_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device '{name}' is unknown; it must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' is not supported; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if index >= n_devices:
            raise UsageError(f"device '{name}': this machine has {n_devices} CUDA devices; use auto or cpu")
        return torch.device("cuda", index)
    return device


def _find_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    if precision == "float32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if precision in ("fp16", "tf32"):
        if device.type != "cuda":
            raise UsageError(
                f"precision '{precision}' is only for CUDA devices, because a CPU has no fast {precision} "
                "convolution; use bf16 or float32"
            )
        return torch.float16 if precision == "fp16" else None
    if precision != "auto":
        raise UsageError(f"precision '{precision}' is unknown; it must be auto, float32, tf32, bf16 or fp16")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    abilities = torch.cpu.get_capabilities()
    return (
        torch.bfloat16 if (abilities.get("avx512_bf16", False) or abilities.get("amx_bf16", False)) else None
    )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode during the block. Afterwards each module gets its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
