"""Annealed importance sampling: known log Z, intervals, bounds, transitions, bad input."""

import itertools
import math

import pytest
import torch

from fastebm.energies import RBM, GaussianRBM
from fastebm.likelihood import ais as module
from fastebm.likelihood.ais import ais, reverse_ais, student_t
from fastebm.likelihood.annealing import GibbsChains, MetropolisChains
from fastebm.likelihood.bases import BernoulliBase, GaussianBase, UniformBase
from fastebm.likelihood.exact import log_partition
from fastebm.rng import ChainRNG


def random_rbm(n_visible=6, n_hidden=4, scale=1.0):
    rbm = RBM(n_visible, n_hidden).double()
    with torch.no_grad():
        for p in rbm.parameters():
            p.normal_(0, scale)
    return rbm


def all_bits(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def exact_samples(rbm, n):
    v = all_bits(rbm.n_visible)
    return v[torch.multinomial(torch.softmax(-rbm.free_energy(v), 0), n, replacement=True)]


def bits(n):
    return BernoulliBase(torch.zeros(n, dtype=torch.float64))


PRECISION = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
GAUSSIAN_LOG_Z = math.log(2 * math.pi) - 0.5 * math.log(torch.det(PRECISION).item())
ZERO = torch.zeros(2, dtype=torch.float64)
BASES = {
    "gaussian": GaussianBase(ZERO + 0.5, ZERO + 1.5),
    "uniform": UniformBase(ZERO - 6, ZERO + 6),
}


def gaussian(x):
    return ((x @ PRECISION) * x).sum(1) / 2


def gaussian_samples(n):
    root = torch.linalg.cholesky(torch.linalg.inv(PRECISION))
    return torch.randn(n, 2, dtype=torch.float64) @ root.T


def groups(estimate, n, confidence, sign=1):
    """The estimates of runs of n chains that one run of many chains is made of."""
    parts = estimate.log_weights.split(n)
    return [module._estimate(w, estimate.acceptance, confidence, sign) for w in parts]


def check_coverage(estimates, truth, confidence):
    """The share of intervals with the truth is the confidence, within 4 standard deviations."""
    n = len(estimates)
    hits = sum(e.interval[0] <= truth <= e.interval[1] for e in estimates) / n
    assert abs(hits - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / n)


@pytest.mark.parametrize("reverse", [False, True])
def test_intervals_of_a_machine_cover_log_z_at_the_stated_rate(reverse):
    rbm, n, runs = random_rbm(), 40, 500
    if reverse:
        many = reverse_ais(rbm, bits(6), exact_samples(rbm, n * runs), 60, seed=2)
    else:
        many = ais(rbm, bits(6), 60, n_chains=n * runs, seed=1)
    assert 0.5 < many.ess / many.n_chains < 0.98  # weights that differ, so the interval matters
    estimates = groups(many, n, 0.8, -1 if reverse else 1)
    check_coverage(estimates, log_partition(rbm).item(), 0.8)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_intervals_of_an_energy_cover_log_z_at_the_stated_rate(base, reverse):
    n, runs, n_betas = 50, 200, {"gaussian": 60, "uniform": 300}[base]
    settings = {"seed": 3, "step_size": 0.9}
    if reverse:
        many = reverse_ais(gaussian, BASES[base], gaussian_samples(n * runs), n_betas, **settings)
    else:
        many = ais(gaussian, BASES[base], n_betas, n_chains=n * runs, **settings)
    assert 0.5 < many.ess / many.n_chains < 0.98
    estimates = groups(many, n, 0.8, -1 if reverse else 1)
    check_coverage(estimates, GAUSSIAN_LOG_Z, 0.8)


def test_a_machine_without_weights_is_solved_exactly():
    # Every chain then has the same weight, the product of 1 + exp(c_j) over 2.
    rbm = random_rbm()
    with torch.no_grad():
        rbm.W.zero_()
    base = BernoulliBase(rbm.b.detach().clone())
    for estimate in (
        ais(rbm, base, 10, n_chains=9, seed=0),
        reverse_ais(rbm, base, all_bits(6)[:9], 10, seed=0),
    ):
        assert estimate.log_z == pytest.approx(log_partition(rbm).item(), rel=1e-12)
        assert estimate.ess == pytest.approx(9, rel=1e-12)
        assert estimate.interval[1] - estimate.interval[0] < 1e-11


def test_one_step_is_importance_sampling():
    # No transition at all: the weights are exp(-E) / p_0 at samples of the base.
    estimate = ais(gaussian, BASES["gaussian"], 1, n_chains=7, step_size=1.0, seed=5)
    x = BASES["gaussian"].sample(7, ChainRNG(5))
    expected = BASES["gaussian"].energy(x)[0] - gaussian(x)
    torch.testing.assert_close(estimate.log_weights, expected)
    assert estimate.log_z == pytest.approx(float(torch.logsumexp(expected, 0)) - math.log(7))


def test_mean_weight_is_unbiased_at_any_number_of_betas():
    # Three crude steps. In z units of the mean weight: E w = Z exactly.
    rbm = random_rbm()
    many = ais(rbm, bits(6), [0, 0.2, 0.6, 1], n_chains=200_000, seed=4)
    w = (many.log_weights - log_partition(rbm)).exp()
    assert abs(w.mean() - 1) < 4.5 * w.std() / math.sqrt(len(w))
    many = ais(gaussian, BASES["uniform"], 3, n_chains=100_000, step_size=1.0, seed=4)
    w = (many.log_weights - GAUSSIAN_LOG_Z).exp()
    assert abs(w.mean() - 1) < 4.5 * w.std() / math.sqrt(len(w))


def test_forward_and_reverse_bracket_log_z_on_average():
    rbm = random_rbm(scale=2.0)
    truth, n, runs = log_partition(rbm).item(), 5, 400
    low = ais(rbm, bits(6), 4, n_chains=n * runs, seed=1)
    high = reverse_ais(rbm, bits(6), exact_samples(rbm, n * runs), 4, seed=1)
    for many, sign in ((low, 1), (high, -1)):
        z = torch.tensor([e.log_z for e in groups(many, n, 0.9, sign)])
        assert sign * (truth - z.mean()) > 4.5 * z.std() / math.sqrt(runs)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gibbs_transition_keeps_its_law(beta):
    rbm, n = random_rbm(4, 3), 100_000
    base = BernoulliBase(torch.randn(4, dtype=torch.float64))
    v = all_bits(4)
    chains = GibbsChains(rbm, base, 2)
    chains.start(v, len(v), ChainRNG(0))
    law = torch.softmax(v @ base.logits + chains.log_ratio(0.0, beta), 0)
    index = torch.multinomial(law, n, replacement=True)
    chains.start(v[index], n, ChainRNG(1))
    chains.move(1, beta, ChainRNG(1))
    places = (chains.v @ (2.0 ** torch.arange(3, -1, -1, dtype=v.dtype))).long()
    assert (places != index).double().mean() > 0.3
    counts = torch.bincount(places, minlength=16)
    assert bool(((counts - n * law).abs() < 5 * (n * law).sqrt() + 1).all())


@pytest.mark.parametrize("base", BASES)
def test_langevin_transition_keeps_its_law_at_a_large_step(base):
    # ULA at this step would have a variance 1 / (1 - step precision / 2) times too large.
    n = 100_000
    chains = MetropolisChains(gaussian, BASES[base], 6, 0.8)
    chains.start(gaussian_samples(n), n, ChainRNG(0))
    share = chains.move(1, 1.0, ChainRNG(1))
    assert 0.2 < share < 0.9
    moments = chains.x.T @ chains.x / n
    exact = torch.linalg.inv(PRECISION)
    spread = torch.sqrt((exact.square() + torch.outer(exact.diag(), exact.diag())) / n)
    assert bool(((moments - exact).abs() < 4.5 * spread).all())


def test_pilot_finds_step_sizes_and_other_noise():
    wide = GaussianBase(ZERO, ZERO + 10)
    estimate = ais(gaussian, wide, 400, n_chains=200, seed=6)
    assert abs(estimate.acceptance[100:].mean() - 0.574) < 0.03
    assert estimate.interval[0] - 0.05 < GAUSSIAN_LOG_Z < estimate.interval[1] + 0.05
    assert len(estimate.acceptance) == 399


@pytest.mark.parametrize("kind", ["rbm", "langevin"])
def test_a_seed_decides_the_run(kind):
    rbm = random_rbm()

    def run(seed):
        if kind == "rbm":
            return ais(rbm, bits(6), 5, n_chains=8, seed=seed).log_weights
        return ais(gaussian, BASES["uniform"], 5, n_chains=8, seed=seed).log_weights

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    stream = ChainRNG(1)
    assert torch.equal(run(stream), run(1)) and not torch.equal(run(stream), run(1))


def test_gaussian_machine_as_an_energy():
    machine = GaussianRBM(3, 4).double()
    with torch.no_grad():
        for p in machine.parameters():
            p.normal_(0, 0.5)
    base = GaussianBase(torch.zeros(3, dtype=torch.float64), torch.full((3,), 2.0).double())
    settings = {"n_chains": 200, "confidence": 0.9999, "seed": 0}
    gibbs = ais(machine, base, 300, **settings)
    langevin = ais(machine.free_energy, base, 300, step_size=0.5, **settings)
    for estimate in (gibbs, langevin):
        assert estimate.interval[0] < log_partition(machine).item() < estimate.interval[1]
        assert estimate.interval[1] - estimate.interval[0] < 0.4
    assert bool((gibbs.acceptance == 1).all()) and bool((langevin.acceptance < 1).any())
    assert machine.W.requires_grad


@pytest.mark.parametrize("reverse", [False, True])
def test_intervals_of_a_gaussian_machine_cover_log_z_at_the_stated_rate(reverse):
    machine, n, runs = GaussianRBM(2, 3).double(), 40, 300
    with torch.no_grad():
        for p in machine.parameters():
            p.normal_(0, 0.8)
    base = GaussianBase(ZERO, ZERO + 1.5)
    if reverse:  # exact samples: h from its law by enumeration, v from p(v | h)
        h = all_bits(3)
        law = torch.softmax(-machine.hidden_free_energy(h), 0)
        h = h[torch.multinomial(law, n * runs, replacement=True)]
        many = reverse_ais(machine, base, machine.sample_visible(h, 1), 60, seed=2)
    else:
        many = ais(machine, base, 60, n_chains=n * runs, seed=1)
    assert 0.5 < many.ess / many.n_chains < 0.99
    estimates = groups(many, n, 0.8, -1 if reverse else 1)
    check_coverage(estimates, log_partition(machine).item(), 0.8)


def test_mixtures_with_scales_and_float32():
    # Two scales, summed; float32 energies, float64 weights.
    scales = lambda x: torch.stack([x.square().sum(1), x.square().sum(1)], 1) / 4  # noqa: E731
    base = GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
    estimate = ais(scales, base, 100, step_size=0.5, confidence=0.9999, seed=1)
    assert estimate.log_weights.dtype == torch.float64
    assert estimate.interval[0] < math.log(2 * math.pi) < estimate.interval[1]


def test_schedule_of_the_paper():
    betas = module._ladder("sm2008")
    assert len(betas) == 14_501 and betas[0] == 0 and betas[-1] == 1
    assert betas[500] == 0.5 and betas[4500] == 0.9
    assert module._ladder(4) == [0, 0.25, 0.5, 0.75, 1]


def test_quantiles_of_student():
    stats = pytest.importorskip("scipy.stats")
    for dof in (1, 2, 3, 5, 20, 99):
        for confidence in (0.5, 0.8, 0.95, 0.99):
            exact = stats.t.ppf((1 + confidence) / 2, dof)
            assert student_t(confidence, dof) == pytest.approx(exact, rel=0.02)
            if dof >= 5:
                assert student_t(confidence, dof) == pytest.approx(exact, rel=2e-3)


def test_bases_fit_data():
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    logits = BernoulliBase.fit(x).logits
    torch.testing.assert_close(logits.sigmoid(), torch.tensor([2 / 5, 4 / 5]))
    y = torch.stack([torch.randn(5000) * 3 + 1, torch.zeros(5000)], 1)
    base = GaussianBase.fit(y)
    torch.testing.assert_close(base.mean, y.mean(0))
    assert base.std[1] == pytest.approx(0.01 * base.std[0].item())  # a constant element
    z = GaussianBase(torch.tensor([1.0]), torch.tensor([2.0])).sample(100_000, ChainRNG(0))
    assert abs(z.mean() - 1) < 4.5 * 2 / math.sqrt(1e5)
    assert abs(z.std() / 2 - 1) < 4.5 / math.sqrt(2e5)
    u = UniformBase.box(-1, 3, (1,)).sample(100_000, ChainRNG(0))
    assert u.min() > -1 and u.max() < 3
    assert abs(u.mean() - 1) < 4.5 * 4 / math.sqrt(12e5)


def test_energies_of_bases_are_densities():
    x = torch.randn(5, 2, dtype=torch.float64)
    base = BASES["gaussian"]
    law = torch.distributions.Normal(base.mean, base.std)
    e, grad = base.energy(x)
    torch.testing.assert_close(e, -law.log_prob(x).sum(1))
    torch.testing.assert_close(grad, (x - base.mean) / base.std**2)
    assert BASES["uniform"].energy(x)[0].tolist() == pytest.approx([math.log(144)] * 5)


def test_bad_arguments_are_named():
    rbm, x = random_rbm(), torch.zeros(4, 6, dtype=torch.float64)
    cases = [
        (lambda: ais(rbm, bits(5), 3), ValueError, "6 visible units, got"),
        (lambda: ais(gaussian, bits(2), 3), TypeError, "BernoulliBase is for an RBM"),
        (lambda: ais(GaussianRBM(2, 2), bits(2), 3), TypeError, "is for an RBM"),
        (lambda: ais(rbm, torch.zeros(6), 3), TypeError, "base must be a BernoulliBase"),
        (lambda: ais(rbm, bits(6), "linear"), ValueError, "betas must be"),
        (lambda: ais(rbm, bits(6), [0, 0.5]), ValueError, "betas must rise from 0 to 1"),
        (lambda: ais(rbm, bits(6), [0, 0.5, 0.5, 1]), ValueError, "betas must rise"),
        (lambda: ais(rbm, bits(6), 0), ValueError, "betas must be an integer >= 1"),
        (lambda: ais(rbm, bits(6), 3, n_chains=1), ValueError, "n_chains must be"),
        (lambda: ais(rbm, bits(6), 3, n_steps=0), ValueError, "n_steps must be"),
        (lambda: ais(rbm, bits(6), 3, step_size=0.1), ValueError, "block Gibbs"),
        (lambda: ais(rbm, bits(6), 3, confidence=1.0), ValueError, "confidence must be in"),
        (lambda: ais(gaussian, BASES["uniform"], 3, step_size=-1), ValueError, "step_size must"),
        (lambda: reverse_ais(rbm, bits(6), x + 0.5, 3), ValueError, "of 0 and 1"),
        (lambda: reverse_ais(rbm, bits(6), x[:1], 3), ValueError, "B >= 2"),
        (lambda: reverse_ais(rbm, bits(6), x / 0, 3), ValueError, "finite"),
        (
            lambda: reverse_ais(gaussian, BASES["uniform"], torch.full((3, 2), 7.0), 3),
            ValueError,
            "where the base has density",
        ),
        (lambda: ais(GaussianRBM(3, 2), BASES["gaussian"], 3), ValueError, "3 visible units, got"),
        (lambda: GaussianBase(ZERO, ZERO), ValueError, "std must be > 0"),
        (lambda: UniformBase(ZERO, ZERO), ValueError, "lo must be < hi"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_nan_weights_are_reported():
    with pytest.raises(FloatingPointError, match="8 of 8 chains"):
        ais(lambda x: x.sum(1) * math.nan, BASES["gaussian"], 3, n_chains=8, step_size=0.1)
