"""Gibbs with gradients: the operator against its twin, bits, laws by enumeration, errors."""

import itertools
import math

import pytest
import torch
from conftest import SIMD_LEVELS

from fastebm import ChainRNG
from fastebm.ops import library, reference
from fastebm.ops.discrete import gwg_step_
from fastebm.ops.reference.discrete import proposal_logits, way_back

SEED, STEP, OFFSET = 2**63 + 7, 11, 2**33
# Binary: one block, ragged, vectors full and not, more partial sums than there are. Categories: a
# site in several vectors, several sites in a block.
SHAPES = [(1, 1), (40, 3), (70, 4), (9, 33), (5, 64), (3, 700), (2, 1030), (2, 2500)]
SITES = [(1, 1, 2), (30, 3, 3), (5, 7, 2), (4, 33, 5), (3, 4, 64), (2, 5, 300)]
CASES = [(shape, 0) for shape in SHAPES] + [(shape, shape[-1]) for shape in SITES]
IDS = ["x".join(map(str, shape)) for shape, _ in CASES]


def state(device="cpu", step=STEP):
    return ChainRNG(SEED, step, OFFSET).state(device)


def random_states(shape, k, dtype=torch.float32):
    if k == 0:
        return torch.randint(2, shape).to(dtype)
    return torch.nn.functional.one_hot(torch.randint(k, shape[:-1]), k).to(dtype)


def energy_of(dim, seed=5):
    """A cubic energy of flattened samples, so that the gradient is no difference of energies."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randn(dim, dim, generator=g).double() / dim**0.5
    fields, cubic = torch.randn(2, dim, generator=g).double()

    def energy(x):
        along = x @ cubic / dim**0.5
        e = (x @ pairs * x).sum(1) + x @ fields + along**3
        return e, x @ (pairs + pairs.T) + fields + 3 * along[:, None] ** 2 * cubic / dim**0.5

    return energy


class Chains:
    """What the operator keeps, and a step of it by an energy in float64."""

    def __init__(self, x, energy, k=0, temperature=1.0, device="cpu"):
        self.energy, self.k, self.temperature = energy, k, temperature
        n, self.device = len(x), device
        self.x, self.y = x.to(device, copy=True), torch.empty_like(x, device=device)
        self.e, self.grad = self.at(self.x)
        self.log_q, self.acceptance = torch.zeros(2, n, device=device)
        self.site = torch.zeros(n, dtype=torch.int64, device=device)

    def at(self, x):
        e, grad = self.energy(x.cpu().double().flatten(1))
        return e.float().to(self.device), grad.float().reshape(x.shape).to(self.device)

    def step(self, accept, propose, **options):
        after = self.at(self.y) if accept else (None, None)
        own = self.x, self.e, self.grad, self.log_q, self.site, self.acceptance, self.y
        options = {"rng": state(self.device), **options}
        gwg_step_(
            *(*own, *after, self.temperature),
            **{**options, "accept": accept, "propose": propose, "n_categories": self.k},
        )

    def tensors(self):
        own = self.x, self.e, self.grad, self.log_q, self.site, self.acceptance, self.y
        return [v.cpu().clone() for v in own]


@pytest.mark.parametrize("shape, k", CASES, ids=IDS)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_steps_are_those_of_the_reference(device, shape, k, own):
    x, n = random_states(shape, k), shape[0]
    energy = energy_of(math.prod(shape[1:]))
    temperature = torch.linspace(0.5, 2, n) if own else 0.7
    ids = torch.randint(2**56, (n,)) if own else torch.arange(n) + OFFSET
    wide = temperature.double() if own else temperature
    flat = x.double().flatten(1)
    wanted = reference.gwg_step(energy, flat, wide, k, SEED, STEP, ids)
    chains = Chains(x, energy, k, temperature.to(device) if own else temperature, device)
    options = {"sample_ids": ids.to(device)} if own else {}
    chains.step(False, True, **options)
    same_x, e, grad, log_q, site, acceptance, y = chains.tensors()
    assert torch.equal(same_x, x) and not acceptance.any()
    sure = wanted.margin > 1e-4
    assert sure.sum() >= 0.95 * n
    assert torch.equal(site[sure], wanted.move[sure])
    assert torch.equal(y.flatten(1)[sure], wanted.y[sure].float())
    logits = proposal_logits(flat, energy(flat)[1], wide, k).nan_to_num(neginf=0).abs().amax(1)
    unit = 2e-6 * (1 + logits)
    assert ((log_q - wanted.log_q).abs() <= unit)[sure].all()
    chains.step(True, False, t=1, **options)
    new_x, new_e, new_grad, _, _, acceptance, y = chains.tensors()
    size = unit * 3 + 1e-6 * (e.abs() + energy(wanted.y)[0].abs()) / wide
    share = wanted.log_r.exp().clamp(max=1)
    assert ((acceptance - share).abs() <= size + 1e-6)[sure].all()
    clear = sure & ((wanted.log_r - wanted.log_u).abs() > size)
    taken = wanted.log_r > wanted.log_u
    for mask, states, values in ((taken, wanted.y.float(), chains.at(wanted.y)), (~taken, x, None)):
        rows = mask & clear
        assert torch.equal(new_x.flatten(1)[rows], states.flatten(1)[rows])
        e_there, grad_there = (e, grad) if values is None else (v.cpu() for v in values)
        assert torch.equal(new_e[rows], e_there[rows])
        assert torch.equal(new_grad.flatten(1)[rows], grad_there.flatten(1)[rows])
    assert torch.equal(y, new_x)


@pytest.mark.parametrize("shape, k", CASES, ids=IDS)
def test_same_bits_on_every_path(device, shape, k, set_simd):
    x, e = random_states(shape, k), torch.randn(4, shape[0])
    grads = 3 * torch.randn(4, *shape)
    ids = torch.randint(2**56, shape[:1])

    def run(device):
        there = [v.to(device, copy=True) for v in (x, e[0], grads[0], e[0] * 0, e[0] * 0, x)]
        x_, e_, grad_, log_q, acceptance, y = there
        site, results = torch.zeros(shape[0], dtype=torch.int64, device=device), []
        for t in range(4):
            gwg_step_(
                *(x_, e_, grad_, log_q, site, acceptance, y),
                *((e[t].to(device), grads[t].to(device)) if t else (None, None)),
                *(0.8, state(device)),
                **{"t": t, "accept": t > 0, "propose": t < 3, "n_categories": k},
                sample_ids=ids.to(device) if t == 2 else None,
            )
            results += [v.cpu().clone() for v in (*there, site)]
        return results

    set_simd("scalar")
    op, library.op = library.op, torch.ops.fastebm
    wanted = run("cpu")
    library.op = op
    assert shape[0] < 20 or 0 < (wanted[-3] / 3).mean() < 1  # some accepted, some not
    for level in SIMD_LEVELS if device == "cpu" else SIMD_LEVELS[:1]:
        set_simd(level)
        assert all(map(torch.equal, run(device), wanted)), level


def all_states(dim, k):
    if k == 0:
        return torch.tensor(list(itertools.product((0.0, 1.0), repeat=dim)), dtype=torch.float64)
    rows = torch.eye(k, dtype=torch.float64)
    states = [torch.cat([rows[i] for i in of]) for of in itertools.product(range(k), repeat=dim)]
    return torch.stack(states)


TOYS = [(1, 0), (2, 0), (3, 0), (4, 0), (3, 3), (2, 2)]


@pytest.mark.parametrize("dim, k", TOYS)
@pytest.mark.parametrize("temperature", [0.4, 1.0])
def test_the_matrix_leaves_the_law_as_it_is(dim, k, temperature):
    states = all_states(dim, k)
    energy = energy_of(states.shape[1])
    matrix, law = reference.gwg_matrix(energy, states, temperature, k)
    flow = law[:, None] * matrix
    assert (flow - flow.T).abs().max() < 1e-12 and (law @ matrix - law).abs().max() < 1e-12
    assert (matrix >= -1e-15).all() and (matrix.sum(1) - 1).abs().max() < 1e-12
    power = torch.linalg.matrix_power(matrix, 4096)
    assert dim == 1 or (power - law).abs().max() < 1e-6  # and it is the only one


def assert_shares(count, chance, n):
    """Each cell of a multinomial of n within 4.5 standard deviations."""
    assert (count[chance < 1e-9] == 0).all()
    usual = n * chance * (1 - chance) > 9
    z = (count - n * chance) / (n * chance * (1 - chance)).clamp(min=1e-9).sqrt()
    assert usual.sum() > 1 and (z[usual].abs() < 4.5).all()


@pytest.mark.parametrize("dim, k", TOYS[1:5])
def test_transitions_are_those_of_the_matrix(device, dim, k):
    """From every state, 2e5 chains in all on the CPU."""
    states, temperature = all_states(dim, k), 0.8
    energy = energy_of(states.shape[1])
    matrix, _ = reference.gwg_matrix(energy, states, temperature, k)
    n = (200_000 if library.op is torch.ops.fastebm else 6000) // len(states)
    start = torch.arange(len(states)).repeat_interleave(n)
    shape = (-1, dim, k) if k else (-1, dim)
    x = states[start].float().reshape(shape)
    chains = Chains(x, energy, k, temperature, device)
    chains.step(False, True)
    chains.step(True, False, t=1)
    ends = (chains.x.cpu().flatten(1)[:, None] == states[None]).all(2).double().argmax(1)
    count = torch.zeros_like(matrix).index_put_((start, ends), torch.ones(()).double(), True)
    assert_shares(count, matrix, n)
    shares = chains.acceptance.cpu().view(len(states), n).double().mean(1)
    leaves = 1 - (count.diagonal() / n)  # acceptances, and as many of them, in the mean
    assert (shares - leaves).abs().max() < 4.5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("dim, k", [(4, 0), (3, 3)])
def test_chains_stay_in_the_law(device, dim, k):
    """Accepting and proposing in one call, from exact samples, by which they are still exact."""
    states, n = all_states(dim, k), 100_000 if library.op is torch.ops.fastebm else 2000
    energy = energy_of(states.shape[1])
    law = (-energy(states)[0] / 0.6).softmax(0)
    start = torch.multinomial(law, n, replacement=True)
    shape = (-1, dim, k) if k else (-1, dim)
    chains = Chains(states[start].float().reshape(shape), energy, k, 0.6, device)
    chains.step(False, True)
    for t in range(1, 11):
        chains.step(True, t < 10, t=t)
    ends = (chains.x.cpu().flatten(1)[:, None] == states[None]).all(2).double().argmax(1)
    assert (ends != start).double().mean() > 0.2
    assert_shares(ends.bincount(minlength=len(states)).double(), law, n)
    e, grad = chains.at(chains.x)
    assert torch.equal(chains.e, e) and torch.equal(chains.grad, grad)


@pytest.mark.parametrize("dim", [1, 4, 40, 700])
def test_moves_of_large_samples_have_their_law(device, dim):
    """By chi-square, where probabilities are far apart; and the way back is found."""
    n = 100_000 if library.op is torch.ops.fastebm else 600
    n = n if dim < 100 else n // 10
    x, grad = torch.randint(2, (1, dim)).float(), 2 * torch.randn(1, dim)
    chance = proposal_logits(x.double(), grad.double(), 1.0, 0).softmax(1)[0]
    x, grad, zero = x.repeat(n, 1).to(device), grad.repeat(n, 1).to(device), torch.zeros(n)
    site, scalars = torch.zeros(n, dtype=torch.int64), [zero.clone().to(device) for _ in range(3)]
    site, y = site.to(device), torch.empty_like(x)
    own = x, scalars[0], grad, scalars[1], site, scalars[2], y
    gwg_step_(*own, None, None, 1.0, state(device), accept=False)
    count = site.cpu().bincount(minlength=dim).double()
    often = n * chance > 5
    rest = n * chance[~often].sum()
    statistic = ((count - n * chance) ** 2 / (n * chance))[often].sum()
    statistic = statistic + ((count[~often].sum() - rest) ** 2 / rest if rest > 5 else 0)
    df = max(int(often.sum()) - 1 + int(rest > 5), 1)
    assert statistic < df + 4.5 * math.sqrt(2 * df) + 10
    log_q = chance.log()[site.cpu()]
    assert (scalars[1].cpu() - log_q).abs().max() < 1e-5
    assert torch.equal((x != y).cpu().nonzero()[:, 1], site.cpu())
    assert torch.equal(way_back(x.cpu(), site.cpu(), 0), site.cpu())


@pytest.mark.parametrize("where", ["energy", "grad", "temperature"])
@pytest.mark.parametrize("dim", [3, 40])
def test_nan_is_refused(device, where, dim, set_simd):
    for level in SIMD_LEVELS:
        set_simd(level)
        x, energy = random_states((6, dim), 0), energy_of(dim)
        temperature = torch.ones(6, device=device)
        if where == "temperature":
            temperature[:3] = torch.tensor([math.nan, -1.0, math.inf])
        chains = Chains(x, energy, 0, temperature, device)
        chains.step(False, True)
        e_y, grad_y = chains.at(chains.y)
        if where == "energy":
            e_y[:3] = math.nan
        if where == "grad":
            grad_y[:3, dim // 2] = math.nan
        own = chains.x, chains.e, chains.grad, chains.log_q, chains.site, chains.acceptance
        gwg_step_(*own, chains.y, e_y, grad_y, temperature, state(device), t=1)
        assert torch.equal(chains.x[:3].cpu(), x[:3]) and not chains.acceptance[:3].any()
        assert chains.acceptance[3:].all() and chains.e.isfinite().all()
        assert ((chains.site >= 0) & (chains.site < dim)).all()


def test_same_bits_for_any_number_of_threads(set_threads):
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        torch.manual_seed(0)
        chains = Chains(random_states((701, 30), 0), energy_of(30))
        for t in range(3):
            chains.step(t > 0, True, t=t)
        results.append(chains.tensors())
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


def arguments(**change):
    x, n = torch.tensor([[0.0, 1, 0], [1, 1, 0]]), torch.zeros(2)
    given = dict(x=x, energy=n, grad=x.clone(), log_q=n.clone(), site=torch.zeros(2).long())
    given |= dict(acceptance=n.clone(), y=x.clone(), e_y=n.clone(), grad_y=x.clone())
    return given | dict(temperature=1.0, rng=state()) | change


Z, L = torch.zeros(2, 3), torch.zeros(2).long()
ERRORS = [
    (dict(x=torch.zeros(())), "x must have a batch dimension"),
    (dict(x=Z.double()), "x must be float32, got Double"),
    (dict(x=torch.zeros(2, 0)), r"a sample must have 1\.\.2\^31 - 1 elements, got 0"),
    (dict(x=torch.zeros(3, 2).T), "x must be contiguous, of the shape of x"),
    (dict(grad=torch.zeros(2, 4)), "grad must be contiguous, of the shape of x"),
    (dict(y=Z.half()), "y must be float32, got Half"),
    (dict(energy=torch.zeros(3)), r"energy must be contiguous, of shape \(B,\)"),
    (dict(log_q=torch.zeros(2).double()), "log_q must be float32, got Double"),
    (dict(acceptance=torch.zeros(2, 1)), r"acceptance must be contiguous, of shape \(B,\)"),
    (dict(site=torch.zeros(2)), r"site must be a contiguous int64 tensor \(2,\)"),
    (dict(site=torch.tensor([0, 3])), r"site must be in 0\.\.2, got 3 for sample 1"),
    (dict(e_y=None), "e_y and grad_y must be given to accept y"),
    (dict(e_y=torch.zeros(1)), r"e_y must be contiguous, of shape \(2,\)"),
    (dict(grad_y=Z[:1]), "grad_y must be contiguous, of the shape of x"),
    (dict(temperature=0.0), "temperature must be finite and > 0, got 0"),
    (dict(temperature=math.nan), "temperature must be finite and > 0, got -?nan"),
    (dict(temperature=torch.ones(3)), "temperature must hold 1 or B = 2 values"),
    (dict(n_categories=1), "n_categories must be 0, for binary x, or at least 2, got 1"),
    (dict(n_categories=2), "n_categories must be the last size of x, 3, got 2"),
    (dict(t=-1), r"t must be in 0..2\^32 - 1, got -1"),
    (dict(sample_ids=torch.arange(3)), r"sample_ids must be a contiguous int64 tensor \(2,\)"),
]


@pytest.mark.parametrize("change, message", ERRORS, ids=[m for _, m in ERRORS])
def test_errors_name_the_argument_and_change_nothing(change, message):
    given, before = arguments(**change), arguments(**change)
    with pytest.raises(RuntimeError, match=message):
        gwg_step_(**given)
    for name, value in before.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(given[name], value), name


def test_empty_opcheck_and_compile(device):
    empty = {k: v[:0] if v.shape[0] == 2 else v for k, v in arguments().items() if k in "xy"}
    empty |= {k: arguments()[k][:0] for k in ("grad", "grad_y", "energy", "log_q", "e_y")}
    gwg_step_(**arguments(acceptance=torch.zeros(0), site=L[:0], **empty))
    values = list(arguments().values())
    tail = (1.0, None, state(), 0, None, True, True, 0)
    torch.library.opcheck(library.op.gwg_step_.default, (*values[:9], *tail))

    x, energy, grad, log_q, site, acceptance, y, e_y, grad_y, temperature, rng = values

    def f(x, y):
        x, y = x.clone(), y.clone()
        gwg_step_(x, energy, grad, log_q, site, acceptance, y, e_y, grad_y, temperature, rng)
        return x + 1, y

    eager = f(x, y)
    energy, grad, log_q, site, acceptance = list(arguments().values())[1:6]
    assert all(map(torch.equal, torch.compile(f, fullgraph=True)(x, y), eager))
