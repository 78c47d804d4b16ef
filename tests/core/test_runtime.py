import os
import signal
import sys

import pytest
import torch
from torch import nn

from brats_seg.core.cores import n_cores
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import (
    Precision,
    Runtime,
    catch_stop_signals,
    n_workers,
    set_allocator,
    start_runtime,
    worker_device,
)


def test_cpu_runtime_says_what_it_stands_on() -> None:
    runtime = start_runtime(device="cpu", precision="float32")
    assert runtime == Runtime(torch.device("cpu"), None, torch.get_num_threads(), rank=0, world_size=1)
    assert runtime.is_writer


def test_threads_0_is_torchs_own_number_whatever_an_earlier_run_set() -> None:
    own = start_runtime(device="cpu").n_threads
    assert start_runtime(device="cpu", threads=own + 1).n_threads == own + 1
    assert start_runtime(device="cpu", threads=0).n_threads == own
    assert torch.get_num_threads() == own


def test_bf16_rounds_to_eight_bits_inside_autocast_alone() -> None:
    runtime = start_runtime(device="cpu", precision="bf16")
    layer = nn.Linear(4, 4)
    with runtime.autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    assert layer(torch.ones(1, 4)).dtype == torch.float32


def test_auto_precision_follows_the_processor() -> None:
    found = torch.cpu.get_capabilities()
    native = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    assert start_runtime(device="cpu").dtype_autocast == (torch.bfloat16 if native else None)


@pytest.mark.parametrize(
    ("device", "precision"), [("tpu-ish", "auto"), ("meta", "auto"), ("cpu", "fp8"), ("cuda:99", "auto")]
)
def test_what_is_not_there_is_refused_by_value(device: str, precision: str) -> None:
    with pytest.raises(UsageError, match=device if device != "cpu" else precision):
        start_runtime(device=device, precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_some_precisions_are_for_cuda(precision: Precision) -> None:
    with pytest.raises(
        UsageError,
        match=f"'{precision}' is only for CUDA devices, because a CPU has no fast {precision} convolution",
    ):
        start_runtime(device="cpu", precision=precision)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_float32_is_float32_on_a_gpu_too(precision: Precision) -> None:
    """Torch lets convolutions round to TF32; the context of equal shapes does not turn that on again."""
    kinds = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    for kind in kinds:
        kind.fp32_precision = "tf32"
    start_runtime(device="cpu", precision=precision)
    assert [kind.fp32_precision for kind in kinds] == ["ieee"] * 3
    with Runtime(torch.device("cuda", 0)).one_shape():
        assert torch.backends.cudnn.benchmark
        assert [kind.fp32_precision for kind in kinds] == ["ieee"] * 3
    assert not torch.backends.cudnn.benchmark


def test_cudnn_tries_its_algorithms_on_a_gpu_or_as_told() -> None:
    for device, knob, tries in (("cpu", "auto", False), ("cpu", "always", True), ("cuda", "never", False)):
        with Runtime(torch.device(device), cudnn_benchmark=knob).one_shape():  # type: ignore[arg-type]
            assert torch.backends.cudnn.benchmark == tries


def test_networks_are_placed_channels_last() -> None:
    network = Runtime(torch.device("cpu")).place(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(8, 8, 3)))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_one_rank_talks_to_itself() -> None:
    runtime = Runtime(torch.device("cpu"))
    assert runtime.gather("a") == ["a"]
    assert runtime.any_rank(True)
    assert runtime.sum_over_ranks(torch.ones(2)).tolist() == [1, 1]


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_device("auto", worker=3) == ("auto" if not torch.cuda.is_available() else "cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [worker_device("cuda", worker=i) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_device("cuda:1", worker=2) == "cuda:1"
    assert worker_device("cpu", worker=1) == "cpu"
    assert (n_workers(0, device="cuda"), n_workers(5, device="cuda")) == (2, 5)
    assert n_workers(0, device="cpu") == len(os.sched_getaffinity(0))


def test_allocator_can_be_set_on_glibc_only() -> None:
    assert set_allocator() == (
        sys.platform.startswith("linux")
        and hasattr(os, "confstr")
        and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    )


def test_a_signal_asks_and_the_second_interrupt_breaks() -> None:
    before = signal.getsignal(signal.SIGINT)
    with catch_stop_signals() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_where_the_system_does_not_say_which_cores_are_ours_all_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert (n_cores(), n_workers(0), n_workers(2)) == (3, 3, 2)
