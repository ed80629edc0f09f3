"""The emulated device of fake_cuda.py: where tensors are, and what it refuses as torch does."""

import pytest
import torch
from conftest import HAS_SIMT
from fake_cuda import CPU, CUDA, fake_cuda
from torch import nn

from fastebm import LangevinDynamics, nearest_neighbor, ops
from fastebm.rng import ChainRNG

pytestmark = pytest.mark.skipif(not HAS_SIMT, reason="built without FASTEBM_SIMT=ON")


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    with fake_cuda(monkeypatch):
        yield


def test_where_tensors_are():
    a, b = torch.randn(3, 2, device="cuda"), torch.randn(3, 2)
    there = [
        *(a, a + 1, a[1:], a.T, a.double(), a.detach(), a.clone(), torch.zeros_like(a), a * a),
        *(a.new_zeros(2), a.new_tensor([1.0]), torch.as_tensor(b, device="cuda"), a.to(a)),
        *(b.cuda(), b.to("cuda"), b.to(a), b.to(CUDA, torch.float64), b.to(device="cuda")),
        *(torch.full((2,), 1.0, device=CUDA), nn.Parameter(a), nn.Linear(2, 3).to("cuda").weight),
        *(nn.Linear(2, 3, device="cuda").bias, torch.cat([a, a]), a[torch.tensor([1])]),
        *(a * torch.tensor(2.0), torch.empty(3, 2, device="cuda").copy_(b), a.sum()),
    ]
    assert all(t.device == CUDA and t.is_cuda for t in there)
    here = [b, b.to(b), b.cpu(), a.cpu(), a.to("cpu"), torch.zeros(2), b.new_zeros(2)]
    here += [b.clone().copy_(a), torch.zeros_like(a, device="cpu"), a.to(b)]
    assert all(t.device == CPU and not t.is_cuda for t in here)
    assert torch.equal(a.cpu().cuda(), a) and a.cuda() is a
    assert a.cpu().numpy().shape == (3, 2) and a.tolist() == a.cpu().tolist()
    moved = b.to("cuda")
    moved += 1
    assert not torch.equal(moved.cpu(), b)  # a copy


def test_gradients_are_where_their_tensors_are():
    model = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 1)).cuda()
    x = torch.randn(5, 2, device="cuda", requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (grad.square().sum() + model(x).sum()).backward()
    gradients = [grad, x.grad, *(p.grad for p in model.parameters())]
    assert all(g.device == CUDA for g in gradients)
    assert x.grad.add(x).is_cuda
    host = torch.randn(5, 2, requires_grad=True)
    model(host.cuda()).sum().backward()
    assert host.grad.device == CPU


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: a + b,
        lambda a, b: b.add_(a),
        lambda a, b: a @ b.T,
        lambda a, b: torch.equal(a, b),
        lambda a, b: torch.cat([a, b]),
        lambda a, b: nn.functional.linear(a, torch.eye(2)),
        lambda a, b: b[torch.tensor([1], device="cuda")],
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: torch.tensor(1.0).add_(a.sum()),
        lambda a, b: nn.Linear(2, 1)(a),
        lambda a, b: nearest_neighbor(a, b),
        lambda a, b: ops.langevin_step_(a, b, 0.1, 0.1, ChainRNG(0).state("cuda")),
        lambda a, b: ops.langevin_step_(a, None, 0.1, 0.1, ChainRNG(0).state()),
    ],
)
def test_two_devices_in_one_operator_are_refused(call):
    a, b = torch.randn(3, 2, device="cuda"), torch.randn(3, 2)
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        call(a, b)


def test_a_device_has_no_array():
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        torch.zeros(2, device="cuda").numpy()


def test_chains_run_on_it():
    model = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    x = torch.randn(5, 2)
    expected = LangevinDynamics(model, 0.1, backend="eager", graph=False).sample(x, 4, seed=1)
    for backend in ("fused", "eager"):
        sampler = LangevinDynamics(model.cuda(), 0.1, backend=backend, graph=False)
        end = sampler.sample(x.cuda(), 4, seed=1)
        assert end.is_cuda
        torch.testing.assert_close(end.cpu(), expected, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError, match="device"):
        torch.testing.assert_close(end, expected)
