"""What a GPU refuses, the emulator refuses; where a GPU lets the host wait, it says so."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from tests.gpu.emulator import Emulator, GpuError, emulated


def kinds(gpu: Emulator) -> list[str]:
    """Return the kinds of the waits since the last call."""
    found = [wait.kind for wait in gpu.waits]
    gpu.waits.clear()
    return found


def test_the_machine_has_gpus_only_within_the_context() -> None:
    assert not torch.cuda.is_available()
    with emulated(devices=3):
        torch.cuda.set_device(2)
        assert (torch.cuda.is_available(), torch.cuda.device_count()) == (True, 3)
        assert torch.zeros(2, device="cuda").device == torch.device("cuda", 2)
        with pytest.raises(GpuError, match=r"invalid device ordinal: cuda:3, this process sees 3"):
            torch.zeros(1).to("cuda:3")
    assert not torch.cuda.is_available()
    assert torch.zeros(2).device.type == "cpu"


def test_a_module_computes_on_the_gpu_what_it_computes_on_the_cpu(gpu: Emulator) -> None:
    torch.manual_seed(1)
    module, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()), torch.randn(5, 4)
    module(x).square().sum().backward()
    expected = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    before = list(module.parameters())
    module.zero_grad()
    module.to("cuda")
    assert [id(p) for p in module.parameters()] == [id(p) for p in before]
    with torch.autocast("cuda", enabled=False):
        module(x.to("cuda")).square().sum().backward()
    found = [p.grad for p in module.parameters() if p.grad is not None]
    assert {g.device.type for g in found} == {"cuda"}
    assert [g.tolist() for g in found] == [e.tolist() for e in expected]
    module.to("cpu")
    assert torch.equal(module(x), module(x.to("cpu")))


def test_tensors_of_both_kinds_do_not_mix_but_for_numbers_and_indices(gpu: Emulator) -> None:
    here, there = torch.arange(4.0), torch.arange(4.0, device="cuda")
    for mixed in (
        lambda: here + there, lambda: torch.where(here > 1, there, there),
        lambda: torch.stack([there[0], here[0]]), lambda: there.masked_fill(here > 1, 0.0),
        lambda: there.gather(0, torch.tensor([1])), lambda: here[there.long()],
        lambda: nn.functional.linear(there, here[None]),
    ):
        with pytest.raises(GpuError, match="Expected all tensors to be on the same device"):
            mixed()
    assert (there * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert there[torch.tensor([2, 1])].tolist() == [2.0, 1.0]
    assert len(gpu.mismatches) == 7


def test_what_a_gpu_cannot_do_at_all_is_refused(gpu: Emulator) -> None:
    there = torch.arange(3.0, device="cuda")
    for numpy in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            numpy()
    with pytest.raises(GpuError, match="Expected a 'cuda' device type for generator"):
        torch.rand(2, generator=torch.Generator(), device="cuda")
    with pytest.raises(GpuError, match="cannot pin"):
        there.pin_memory()
    parameter = nn.Parameter(torch.zeros(3))
    with pytest.raises(GpuError, match="assigned grad"):
        parameter.grad = there


def test_every_way_to_wait_is_recorded_and_other_calls_are_not(gpu: Emulator) -> None:
    there, here = torch.tensor([3, 1, 1], device="cuda"), torch.arange(3)
    assert kinds(gpu) == ["copy to the GPU"]
    there.float().exp().sum().argmax().add_(1)
    there.to(torch.float32).to("cuda")
    there[1:] = 2
    there[there == 2] = 1
    there.scatter_(0, torch.zeros(1, dtype=torch.long, device="cuda"), 3)
    assert torch.zeros_like(there).shape == (3,)
    assert kinds(gpu) == []
    for call, kind in (
        (there.sum().item, "item"), (there.tolist, "tolist"), (lambda: bool(there[0]), "bool"),
        (lambda: int(there[0]), "int"), (there.unique, "unique"), (there.nonzero, "nonzero"),
        (lambda: there[there > 1], "boolean index"), (lambda: there[here], "CPU index"),
        (there.cpu, "copy to the CPU"), (lambda: here.to("cuda"), "copy to the GPU"),
        (lambda: here.to("cuda", non_blocking=True), "copy of pageable memory to the GPU"),
        (lambda: f"{there[0]}", "format"), (lambda: there.equal(there), "equal"),
        (lambda: here.copy_(there), "copy to the CPU"),
        (torch.cuda.synchronize, "cuda.synchronize"),
        (lambda: there.repeat_interleave(there), "repeat_interleave"),
    ):
        call()
        assert kinds(gpu) == [kind], kind
    here.pin_memory().to("cuda", non_blocking=True)
    assert kinds(gpu) == []


def test_a_wait_has_its_step_and_its_place_in_the_project(gpu: Emulator) -> None:
    from svll.prompt_quality import margin

    weight = nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones(3, device="cuda")
    optimizer.step()
    optimizer.step()
    rows = torch.rand(2, 3, device="cuda")
    margin(rows, torch.arange(2, device="cuda"), rows)
    [wait] = gpu.waits
    assert wait.step == 2
    assert wait.name == "float svll/prompt_quality.py margin"


def test_a_late_copy_holds_its_numbers_only_once_the_host_has_waited(gpu: Emulator) -> None:
    there, other = torch.tensor([1.0, 2.0], device="cuda"), torch.ones(1, device="cuda")
    first = there.to("cpu", non_blocking=True)
    mark = torch.cuda.Event()
    mark.record()
    second = other.to("cpu", non_blocking=True)
    there.zero_()
    assert first.isnan().all()
    mark.synchronize()
    assert first.tolist() == [1.0, 2.0]
    assert second.isnan().all()
    torch.cuda.current_stream().synchronize()
    assert second.tolist() == [1.0]


def test_pinned_memory_may_not_change_before_the_gpu_has_read_it(gpu: Emulator) -> None:
    pinned = torch.zeros(4).pin_memory()
    pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    pinned.fill_(1)  # read already
    pinned.to("cuda", non_blocking=True)
    pinned.fill_(2)
    with pytest.raises(GpuError, match="overwritten before the GPU had read it"):
        torch.cuda.synchronize()


def test_other_threads_and_backward_passes_are_seen_too(gpu: Emulator) -> None:
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.zeros(2, device="cuda")))
    thread.start()
    thread.join()
    assert found[0].device.type == "cuda"

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 2

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad * 2 * grad.new_ones(()).item()

    x = torch.ones(2, device="cuda", requires_grad=True)
    Doubled.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 2.0]


def test_batch_normalisation_over_ranks_computes_what_it_does_on_gpus(gpu: Emulator) -> None:
    x = torch.randn(6, 3, 2, 2, device="cuda", requires_grad=True)
    plain = nn.BatchNorm2d(3).to("cuda")
    mean, inverse = torch.batch_norm_stats(x, 1e-5)
    ones = torch.full((1,), 24.0, device="cuda")
    mean, inverse = torch.batch_norm_gather_stats_with_counts(
        x, mean[None], inverse[None], None, None, 0.1, 1e-5, ones
    )
    out = torch.batch_norm_elemt(x, None, None, mean, inverse, 1e-5)
    assert torch.allclose(out, plain(x), atol=1e-5)
    grad = torch.randn_like(x)
    total, times, _, _ = torch.batch_norm_backward_reduce(
        grad, x, mean, inverse, None, True, False, False
    )
    found = torch.batch_norm_backward_elemt(
        grad, x, mean, inverse, None, total, times, ones.int()
    )
    plain(x).backward(grad)
    assert x.grad is not None
    assert torch.allclose(found, x.grad, atol=1e-5)
