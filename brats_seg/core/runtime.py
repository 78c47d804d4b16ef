"""Device, rank, precision, threads and allocator: what a run stands on."""

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
    """Where and how networks run: one value for each process.

    Attributes:
        device: the device of this process.
        dtype_autocast: bfloat16 or float16 for mixed precision, None for plain float32.
        n_threads: threads torch computes with on a CPU.
        rank, world_size: this process among those that `torchrun` started; 0 and 1 without it.
        tf32: whether a CUDA device multiplies float32 numbers with 10 bits after the point (TF32).
        compile: "always" makes code for networks that train; "graphs" also records CUDA graphs of them.
        cudnn_benchmark: whether cuDNN tries its algorithms; "auto" does so on a CUDA device.
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
        """Whether this process writes the run's files: rank 0 alone does."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which networks run at this runtime's precision."""
        if self.dtype_autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype_autocast)

    @contextmanager
    def one_shape(self) -> Iterator[None]:
        """A context in which every pass has the same shape: cuDNN tries its algorithms at the first pass and
        keeps the fastest, as `cudnn_benchmark` says.
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
        """The network on this device, channels last (what convolutions run fastest on, and how a bank's
        batches lie in memory).

        Several CUDA ranks share batch statistics; CPU ranks keep their own (torch has no synchronized batch
        norm there).
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
        """Whether any rank wishes so; the same answer on every rank."""
        return any(self.gather(wish))

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank the batch-norm statistics of rank 0, so that all evaluate the same network."""
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
    """Set this process up and say what it runs on.

    Args:
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".
        precision: "auto" is bf16 on a device that multiplies it natively, else fp16 on a CUDA device and
            float32 on a CPU. "float32" means float32: torch's own default for convolutions is TF32, which
            "tf32" asks for.
        threads: threads on a CPU; 0 for the number that torch had at the first call (its own: the cores, or
            OMP_NUM_THREADS).
        compile, cudnn_benchmark: see `Runtime`.

    Raises:
        UsageError: a device or precision that is not there.
    """
    set_allocator()
    rank, world_size = _join_ranks(device)
    chosen = _find_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    cudnn: Any = torch.backends.cudnn  # the stubs of torch do not know its parts
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
    """Torch's own number of threads: asked for once, before a run has set another."""
    return torch.get_num_threads()


def n_workers(asked: int, *, device: str = "cpu") -> int:
    """Processes: as asked, or one for each core that this process may use; where they compute on GPUs, one
    for each.
    """
    return asked or (torch.cuda.device_count() if _on_gpus(device) else n_cores())


def worker_device(device: str, *, worker: int) -> str:
    """Where the n-th of several workers computes: the GPUs in turn. A device that is named by its number is
    kept.
    """
    return f"cuda:{worker % torch.cuda.device_count()}" if _on_gpus(device) else device


def _on_gpus(device: str) -> bool:
    return device in ("auto", "cuda") and torch.cuda.is_available()


def set_allocator() -> bool:
    """Keep glibc from handing large blocks back to the kernel after each use; True where it could be set.

    Every step of a network frees and takes the same large arrays. Fresh pages are the slowest part of that:
    without them U-Net steps ran 1.5 times faster. Does nothing where the C library is not glibc.
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
    """Note SIGTERM and Ctrl-C instead of dying of them, for the time of the block; a second Ctrl-C interrupts
    at once.

    Signals reach the main thread only: in another one nothing is caught.
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
    """Number of this process among those that `torchrun` started, and how many these are; (0, 1) without."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def gather_from_ranks(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank. The group of processes was joined before."""
    values: list[Any] = [None] * ranks()[1]
    dist.all_gather_object(values, value, group=_patient_group())
    return values


@cache
def _patient_group() -> dist.ProcessGroup | None:
    """The ranks, who wait for each other for as long as it takes: one may have hours of cases more."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


def _join_ranks(device: str) -> tuple[int, int]:
    """Rank and number of ranks; joins the group of processes where `torchrun` started this one."""
    if ranks()[1] == 1:
        return 0, 1
    if not dist.is_initialized():
        on_cuda = device != "cpu" and torch.cuda.is_available()
        # gloo beside nccl: what the processor needs to know does not make the GPU wait
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
        _patient_group()  # all ranks make it, while they are together
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
                f"precision '{precision}' is for CUDA devices: a CPU has no fast {precision} convolution; "
                "use bf16 or float32"
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
    """Evaluation mode for the time of the block; each module then gets its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
