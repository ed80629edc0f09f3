"""Exact log Z and pseudo-likelihood, against brute force and machines that are solved by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastebm.energies import RBM, GaussianRBM, MLPEnergy
from fastebm.likelihood import exact as likelihood
from fastebm.likelihood.exact import log_partition, pseudo_likelihood


def random_machine(kind, n_visible, n_hidden, scale=1.0, dtype=torch.float64):
    """A machine whose parameters are all N(0, scale^2)."""
    machine = kind(n_visible, n_hidden).to(dtype)
    with torch.no_grad():
        for p in machine.parameters():
            p.normal_(0, scale)
    return machine


def all_bits(n, dtype=torch.float64):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=dtype)


@pytest.mark.parametrize("sizes", [(3, 5), (5, 3), (1, 1), (4, 4)])
def test_log_partition_is_the_sum_over_all_joint_states(sizes):
    rbm = random_machine(RBM, *sizes)
    v, h = all_bits(sizes[0]), all_bits(sizes[1])
    joint = torch.stack([rbm.energy(v, row.expand(len(v), -1)) for row in h])
    torch.testing.assert_close(log_partition(rbm), torch.logsumexp(-joint.flatten(), 0))


def test_log_partition_of_machines_solved_by_hand():
    rbm = random_machine(RBM, 30, 7)
    with torch.no_grad():
        rbm.W.zero_()  # independent units: a product of 1 + exp(bias)
    alone = sum(math.log1p(math.exp(a)) for a in [*rbm.b.tolist(), *rbm.c.tolist()])
    assert log_partition(rbm).item() == pytest.approx(alone, rel=1e-13)
    one = random_machine(RBM, 1, 1)  # four states
    w, b, c = one.W.item(), one.b.item(), one.c.item()
    four = 1 + math.exp(b) + math.exp(c) + math.exp(b + c + w)
    assert log_partition(one).item() == pytest.approx(math.log(four), rel=1e-13)


def test_log_partition_of_a_gaussian_machine_is_its_integral():
    machine = random_machine(GaussianRBM, 2, 3, 0.7)
    side = torch.arange(-25, 25, 0.05, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    integral = torch.logsumexp(-machine.free_energy(grid), 0) + 2 * math.log(0.05)
    torch.testing.assert_close(log_partition(machine), integral, rtol=1e-9, atol=0)


def test_states_in_blocks_are_all_states(monkeypatch):
    rbm = random_machine(RBM, 6, 9)
    whole = log_partition(rbm)
    whole.backward()
    grads = [p.grad.clone() for p in rbm.parameters()]
    rbm.zero_grad()
    monkeypatch.setattr(likelihood, "_BLOCK", 256 * 7)  # 7 rows: 9 blocks and a last one of 1
    parts = log_partition(rbm)
    parts.backward()
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=0)
    for p, grad in zip(rbm.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", [RBM, GaussianRBM])
@pytest.mark.parametrize("sizes", [(3, 5), (5, 3)])
def test_gradient_of_log_partition_is_that_of_autograd(kind, sizes):
    machine = random_machine(kind, *sizes, 0.7)
    log_partition(machine).mul(3).backward()
    whole = torch.logsumexp(-machine.hidden_free_energy(all_bits(sizes[1])), 0)
    expected = torch.autograd.grad(3 * whole, list(machine.parameters()))
    for p, grad in zip(machine.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-11, atol=1e-13)


def test_float32_parameters_are_summed_in_float64():
    rbm = random_machine(RBM, 12, 6, 3.0, torch.float32)
    exact = log_partition(random_copy := _double(rbm))
    assert log_partition(rbm).dtype == torch.float64
    torch.testing.assert_close(log_partition(rbm), exact, rtol=1e-14, atol=0)
    log_partition(rbm).backward()
    exact.backward()
    assert rbm.W.grad.dtype == torch.float32
    torch.testing.assert_close(rbm.W.grad.double(), random_copy.W.grad, rtol=1e-6, atol=1e-7)


def _double(rbm):
    copy = RBM(rbm.n_visible, rbm.n_hidden).double()
    copy.load_state_dict(rbm.state_dict())
    return copy


def test_log_partition_of_any_binary_energy():
    model = MLPEnergy(7, (5,)).double()
    whole = torch.logsumexp(-model(all_bits(7)), 0)
    ours = log_partition(model, 7)
    torch.testing.assert_close(ours, whole, rtol=1e-13, atol=0)
    weight = model.net[0].weight
    torch.testing.assert_close(
        torch.autograd.grad(ours, weight), torch.autograd.grad(whole, weight)
    )
    # A chain of spins, solved by its transfer matrix [[1, 1], [1, e^J]].
    transfer = np.array([[1, 1], [1, math.exp(0.8)]])
    solved = math.log(np.linalg.matrix_power(transfer, 9).sum())
    spins = log_partition(lambda x: -0.8 * (x[:, 1:] * x[:, :-1]).sum(1), 10)
    assert spins.item() == pytest.approx(solved, rel=1e-13)


def test_log_partition_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="at most 25 units.*smallest layer has 30.*ais"):
        log_partition(RBM(784, 30))
    with pytest.raises(ValueError, match="at most 25 units.*has 26"):
        log_partition(GaussianRBM(2, 26))  # its visible units are no bits
    with pytest.raises(ValueError, match="n_units of the energy must be given, an integer >= 1"):
        log_partition(MLPEnergy(3))
    with pytest.raises(ValueError, match="n_units is known of a machine, got n_units=3"):
        log_partition(RBM(3, 3), 3)
    broken = random_machine(RBM, 3, 3)
    with torch.no_grad():
        broken.W[0, 0] = math.nan
    with pytest.raises(ValueError, match="log Z is nan"):
        log_partition(broken)


def test_pseudo_likelihood_is_the_product_of_the_conditionals():
    rbm = random_machine(RBM, 6, 4)
    v = all_bits(6)
    p = torch.softmax(-rbm.free_energy(v), 0)
    index = (v @ (2.0 ** torch.arange(5, -1, -1, dtype=v.dtype))).long()
    expected = torch.zeros(len(v), dtype=torch.float64)
    for i in range(6):
        partner = index ^ (1 << (5 - i))
        expected += (p[index] / (p[index] + p[partner])).log()
    torch.testing.assert_close(pseudo_likelihood(rbm, v), expected, rtol=1e-11, atol=1e-12)
    anonymous = pseudo_likelihood(lambda x: rbm.free_energy(x), v)  # flip by flip
    torch.testing.assert_close(anonymous, expected, rtol=1e-11, atol=1e-12)


def test_pseudo_likelihood_of_independent_units_is_their_likelihood():
    rbm = random_machine(RBM, 9, 4)
    with torch.no_grad():
        rbm.W.zero_()
    v = torch.randint(0, 2, (20, 9)).double()
    exact = -rbm.free_energy(v) - log_partition(rbm)
    torch.testing.assert_close(pseudo_likelihood(rbm, v), exact, rtol=1e-11, atol=1e-12)


def test_pseudo_likelihood_of_grey_levels_and_pictures():
    # Flips are x -> 1 - x, as in scikit-learn, whose one-bit estimate this is the mean of.
    rbm = random_machine(RBM, 6, 4)
    x = torch.rand(5, 2, 3, dtype=torch.float64)
    flat = x.flatten(1)
    expected = torch.zeros(5, dtype=torch.float64)
    for i in range(6):
        flipped = flat.clone()
        flipped[:, i] = 1 - flipped[:, i]
        difference = rbm.free_energy(flipped) - rbm.free_energy(flat)
        expected += nn.functional.logsigmoid(difference)
    torch.testing.assert_close(pseudo_likelihood(rbm, x), expected, rtol=1e-11, atol=1e-12)


def test_pseudo_likelihood_is_the_mean_of_scikit_learns_estimate():
    sklearn = pytest.importorskip("sklearn.neural_network")
    rbm = random_machine(RBM, 5, 3)
    v = torch.randint(0, 2, (3, 5)).double()
    theirs = sklearn.BernoulliRBM(n_components=3, random_state=0)
    theirs.components_ = rbm.W.detach().numpy()
    theirs.intercept_visible_ = rbm.b.detach().numpy()
    theirs.intercept_hidden_ = rbm.c.detach().numpy()
    theirs.n_features_in_ = 5
    copies = v.repeat(4000, 1)
    scores = torch.from_numpy(theirs.score_samples(copies.numpy())).view(4000, 3)
    error = scores.std(0) / math.sqrt(4000)
    assert bool(((scores.mean(0) - pseudo_likelihood(rbm, v)).abs() < 4.5 * error).all())


def test_pseudo_likelihood_checks_its_data():
    rbm = RBM(4, 3)
    with pytest.raises(ValueError, match=r"in \[0, 1\]; 2 of 8 are not"):
        pseudo_likelihood(rbm, torch.tensor([[0, 1, 1.5, 0], [0, math.nan, 0, 1]]))
    with pytest.raises(ValueError, match=r"must be \(B, 4\), got \(2, 3\)"):
        pseudo_likelihood(rbm, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"floating-point tensor \(B, V\).*got torch.int64"):
        pseudo_likelihood(rbm, torch.zeros(2, 4, dtype=torch.long))
