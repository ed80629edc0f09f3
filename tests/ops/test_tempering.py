"""Swaps between replicas: the operator against its twin, laws by enumeration, errors."""

import math

import pytest
import torch

from fastebm import ChainRNG
from fastebm.ops import library, reference
from fastebm.ops.tempering import replica_swap_

SEED, STEP, OFFSET = 2**63 + 7, 11, 2**33
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def state(device="cpu"):
    return ChainRNG(SEED, STEP, OFFSET).state(device)


def states(replicas, chains, event, dtype=torch.float32, wide=False):
    """x, energy, gradient and velocity."""
    x, grad, v = torch.randn(3, replicas, chains, *event).to(dtype)
    energy = 3 * torch.randn(replicas, chains).to(torch.float64 if wide else torch.float32)
    return x, energy, grad, v


def swapped(device, x, energy, grad, v, temperatures, parity, **options):
    own = [t if t is None else t.to(device, copy=True) for t in (x, energy, grad, v)]
    swaps = torch.full((len(x) - 1, x.shape[1]), 2.0, device=device)
    options = {k: t.to(device) for k, t in options.items()}
    replica_swap_(*own, temperatures.to(device), parity, swaps, state(device), **options)
    return [t if t is None else t.cpu() for t in (*own, swaps)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("replicas, parity", [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (6, 1)])
@pytest.mark.parametrize("event", [(), (1,), (5,), (2, 4), (1030,)], ids=str)
def test_swaps_are_those_of_the_reference(device, dtype, replicas, parity, event):
    chains = 40 if event != (1030,) else 7
    x, energy, grad, v = states(replicas, chains, event, dtype, dtype == torch.float64)
    temperatures = torch.logspace(-0.5, 1, replicas, dtype=torch.float64)
    ids = torch.randint(2**56, (chains,))
    for own in (None, ids):
        who = torch.arange(chains) + OFFSET if own is None else ids
        options = {} if own is None else {"sample_ids": ids}
        wanted = reference.replica_swap(energy.double(), temperatures, parity, SEED, STEP, who)
        got = swapped(device, x, energy, grad, v, temperatures, parity, **options)
        assert (wanted.margin.abs() > 1e-4).all()
        assert replicas < 3 or 0 < (wanted.margin > 0)[parity::2].double().mean() < 1
        column = torch.arange(chains)
        for before, after in zip((x, energy, grad), got, strict=False):
            assert torch.equal(after, before[wanted.source, column])
        factor = wanted.factor.to(torch.promote_types(dtype, torch.float32))
        factor = factor.view(replicas, chains, *[1] * len(event))
        assert torch.equal(got[3], (v[wanted.source, column] * factor).to(dtype))
        assert ((got[4] - 2 - wanted.acceptance).abs() < 1e-6).all()
        assert torch.equal(got[4][1 - parity :: 2], torch.full_like(got[4][1 - parity :: 2], 2))
        without = swapped(device, x, energy, grad, None, temperatures, parity, **options)
        assert all(map(torch.equal, without[:3] + without[4:], got[:3] + got[4:]))


@pytest.mark.parametrize("shape", [(2, 9, 3), (5, 30, 64), (3, 2, 1030)], ids=str)
def test_same_bits_on_every_device(device, shape):
    given = states(*shape[:2], shape[2:])
    temperatures = torch.logspace(0, 1, shape[0])
    op, library.op = library.op, torch.ops.fastebm
    wanted = swapped("cpu", *given, temperatures, 0)
    library.op = op
    assert all(map(torch.equal, swapped(device, *given, temperatures, 0), wanted))


def test_the_rule_is_in_detailed_balance_and_the_draws_have_it(device):
    """Two replicas of a system of two states, energies 0 and 1.3: of the four joint states the
    matrix of the rule balances to the last digit, and from each the operator has its chances."""
    levels, t = torch.tensor([0.0, 1.3]).double(), torch.tensor([0.6, 2.0]).double()
    joint = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    energy = levels[joint].T.contiguous()
    law = (-(energy / t[:, None]).sum(0)).softmax(0)
    share = reference.replica_swap(energy, t, 0, 1, 0, torch.arange(4)).acceptance[0]
    matrix = torch.zeros(4, 4).double()
    for a, (i, j) in enumerate(joint.tolist()):
        matrix[a, 2 * j + i] += share[a]
        matrix[a, a] += 1 - share[a]
    flow = law[:, None] * matrix
    assert (flow - flow.T).abs().max() < 1e-12 and (law @ matrix - law).abs().max() < 1e-12
    n = 50_000 if library.op is torch.ops.fastebm else 2000
    start = torch.arange(4).repeat_interleave(n)
    x = joint[start].T.double().contiguous()
    x, e, *_, swaps = swapped(device, x, levels[x.long()], x.clone(), None, t, 0)
    assert torch.equal(e, levels[x.long()])
    ends = (2 * x[0] + x[1]).long()
    count = torch.zeros(4, 4).double().index_put_((start, ends), torch.ones(()).double(), True)
    assert (count[matrix == 0] == 0).all()
    z = (count - n * matrix) / (n * matrix * (1 - matrix)).clamp(min=1e-9).sqrt()
    assert (z.abs()[(matrix > 0) & (matrix < 1)] < 4.5).all() and (count[matrix == 1] == n).all()
    torch.testing.assert_close(swaps[0].double().view(4, n).mean(1) - 2, share, atol=1e-6, rtol=0)


def test_pairs_and_chains_draw_their_own(device):
    """All swaps of even odds: in a half of the cases, whatever the others do."""
    replicas, chains = 8, 4000
    x, _, grad, _ = states(replicas, chains, (1,))
    energy = torch.arange(replicas, 0, -1.0)[:, None].repeat(1, chains)
    inverse = torch.linspace(8, 8 - 7 * math.log(2), replicas).double()  # log r = -log 2
    before = x.clone()
    x, *_ = swapped(device, x, energy, grad, None, 1 / inverse, 0)
    moved = (x != before)[::2, :, 0].double()
    assert ((moved.mean(1) - 0.5).abs() < 4 * 0.5 / chains**0.5).all()
    assert (torch.corrcoef(moved) - torch.eye(4)).abs().max() < 4.5 / chains**0.5
    shifted = torch.corrcoef(torch.stack([moved[0, 1:], moved[0, :-1]]))
    assert abs(shifted[0, 1]) < 4.5 / chains**0.5


def test_a_velocity_keeps_the_law_of_its_temperature(device):
    t, n = torch.tensor([0.5, 3.0]), 20_000
    x = torch.zeros(2, n, 1)
    v = torch.randn(2, n, 1) * t.sqrt()[:, None, None]
    energy = torch.stack([torch.ones(n), torch.zeros(n)])  # all swap
    *_, v, swaps = swapped(device, x, energy, x.clone(), v, t, 0)
    assert torch.equal(swaps, torch.full((1, n), 3.0))
    assert ((v.square().mean((1, 2)) / t - 1).abs() < 4 * math.sqrt(2 / n)).all()


def test_nan_is_refused_and_infinity_leaves_the_cold(device):
    x, energy, grad, v = states(2, 6, (3,))
    energy[0, :2], energy[1, 2], energy[0, 3], energy[1, 4] = math.nan, math.nan, math.inf, math.inf
    before = x.clone()
    x, _, _, _, swaps = swapped(device, x, energy, grad, v, torch.tensor([1.0, 2.0]), 0)
    same = (x == before).all(2).all(0)
    assert same.tolist()[:5] == [True, True, True, False, True]
    assert swaps[0, :5].tolist() == [2, 2, 2, 3, 2]


def test_same_bits_for_any_number_of_threads(set_threads):
    given, results = states(4, 3001, (7,)), []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(swapped("cpu", *given, torch.logspace(0, 1, 4), 0))
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


def arguments(**change):
    x, energy, grad, v = states(3, 5, (2,))
    given = dict(x=x, energy=energy, grad=grad, velocity=v, temperatures=torch.ones(3))
    return given | dict(parity=0, swaps=torch.zeros(2, 5), rng=state()) | change


ERRORS = [
    (dict(x=torch.zeros(3)), r"x must be \(R, B, \.\.\.\), replicas first, got 1 dimensions"),
    (dict(x=torch.zeros(3, 5, 2).long()), "x must be float32.*got Long"),
    (dict(x=torch.zeros(0, 5, 2)), r"x must have 1\.\.2\^32 - 1 replicas, got 0"),
    (dict(energy=torch.zeros(3, 5).half()), "energy must be float32 or float64, got Half"),
    (dict(energy=torch.zeros(3, 4)), r"energy must be contiguous, of shape \(3, 5\)"),
    (dict(grad=torch.zeros(3, 5)), "grad must be contiguous, of the shape of x"),
    (dict(velocity=torch.zeros(3, 5, 2).half()), "velocity must have the dtype of x, Float, got"),
    (dict(temperatures=torch.ones(2)), r"temperatures must be contiguous, of shape \(3,\)"),
    (dict(temperatures=torch.tensor([1.0, 0, 1])), "must be finite and > 0, got 0 for replica 1"),
    (dict(temperatures=torch.tensor([1.0, math.nan, 1])), "must be finite and > 0, got -?nan"),
    (dict(parity=2), "parity must be 0 or 1, got 2"),
    (dict(swaps=torch.zeros(3, 5)), r"swaps must be contiguous, of shape \(R - 1, B\)"),
    (dict(swaps=torch.zeros(2, 5).double()), "swaps must be float32, got Double"),
    (dict(t=-1), r"t must be in 0..2\^32 - 1, got -1"),
    (dict(sample_ids=torch.arange(3)), r"sample_ids must be a contiguous int64 tensor \(5,\)"),
]


@pytest.mark.parametrize("change, message", ERRORS, ids=[m for _, m in ERRORS])
def test_errors_name_the_argument_and_change_nothing(change, message):
    given = arguments(**change)
    before = {k: v.clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        replica_swap_(**given)
    assert all(torch.equal(given[k], v) or v.isnan().any() for k, v in before.items())


def test_empty_opcheck_and_compile(device):
    for shape in ((1, 5, 2), (3, 0, 2), (3, 5, 0)):
        x, swaps = torch.ones(shape), torch.zeros(shape[0] - 1, shape[1])
        replica_swap_(x, x.sum(2), x.clone(), None, torch.ones(shape[0]), 0, swaps, state())
    given = arguments(temperatures=torch.ones(3).double())
    torch.library.opcheck(library.op.replica_swap_.default, (*given.values(), 0, None))

    rest = [given[k] for k in ("temperatures", "parity", "swaps", "rng")]

    def f(x, energy):
        x, energy = x.clone(), energy.clone()
        replica_swap_(x, energy, x.clone(), None, *rest)
        return x + 1, energy

    x, energy = given["x"], given["energy"]
    compiled = torch.compile(f, fullgraph=True)(x, energy)
    assert all(map(torch.equal, compiled, f(x, energy)))
