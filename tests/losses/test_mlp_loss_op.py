"""The operator behind losses by formulas: chains, memory, threads, contract."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import SIMD_LEVELS
from mlp_networks import double, network
from test_mlp_loss import LOSSES, SAMPLERS, compute, energy, sequential

from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.improved import ImprovedContrastiveDivergence
from fastebm.losses.mlp_loss import LastStepWeights, terms_by_formulas
from fastebm.losses.terms import Batch
from fastebm.ops import library
from fastebm.replay.references import References
from fastebm.rng import ChainRNG
from fastebm.samplers.langevin import LangevinDynamics


class OwnSample(LangevinDynamics):
    """Takes the chain out of the operator."""

    calls = 0

    def sample(self, *args, **kwargs):
        OwnSample.calls += 1
        return super().sample(*args, **kwargs)


def same(mine, other):
    (mine, gradient), (other, expected) = mine, other
    assert torch.equal(mine.x_neg, other.x_neg) and torch.equal(mine.loss, other.loss)
    for name, value in other.metrics.items():
        assert torch.equal(torch.as_tensor(mine.metrics[name]), torch.as_tensor(value)), name
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", ["cd", "icd refs"])
@pytest.mark.parametrize("make", [sequential, energy])
def test_chains_inside_are_those_of_sample(make, kind, options, monkeypatch, set_simd):
    model, x = make()
    for level in SIMD_LEVELS:
        set_simd(level)
        inside = compute(kind, model, x, "auto", **options)
        with monkeypatch.context() as patch:
            patch.setattr("test_mlp_loss.LangevinDynamics", OwnSample)
            before = OwnSample.calls
            same(inside, compute(kind, model, x, "auto", **options))
            assert OwnSample.calls == before + 1


def test_a_sample_of_the_samplers_own_is_called(monkeypatch):
    model, x = energy()
    sampler, seen = LangevinDynamics(model, 0.1), []
    loss = ImprovedContrastiveDivergence(model, sampler, k_steps=3)
    expected = loss(x, seed=1)
    real = sampler.sample
    sampler.sample = lambda *args, **kwargs: seen.append(args) or real(*args, **kwargs)
    assert torch.equal(loss(x, seed=1).loss, expected.loss) and len(seen) == 1


@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_left_in_memory_does_not_matter(kind, monkeypatch):
    model, x = sequential()
    other = torch.nn.Sequential(torch.nn.Linear(3, 90), torch.nn.Tanh(), torch.nn.Linear(90, 1))
    expected = compute(kind, model, x, "auto")
    for n in (1000, 2):  # larger, then smaller: the memory stays
        sampler = LangevinDynamics(other, 0.1)
        ImprovedContrastiveDivergence(other, sampler, k_steps=2)(torch.randn(n, 3)).loss.backward()
        same(compute(kind, model, x, "auto"), expected)


def test_more_than_is_kept():
    # 22 MB and more beside the results; alone, rows give what they give among the others.
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.SiLU(), torch.nn.Linear(4, 1))
    x = torch.randn(100_000, 8)
    loss = ContrastiveDivergence(model, LangevinDynamics(model, 0.1), k_steps=2)
    out, few = loss(x, seed=ChainRNG(3)), loss(x[:50], seed=ChainRNG(3))
    assert torch.equal(out.x_neg[:50], few.x_neg)
    by_graph = LangevinDynamics(model, 0.1, backend="eager")
    expected = ContrastiveDivergence(model, by_graph, k_steps=2)(x, seed=ChainRNG(3))
    for name, value in expected.metrics.items():
        torch.testing.assert_close(
            torch.as_tensor(out.metrics[name]), torch.as_tensor(value), rtol=1e-5, atol=1e-5
        )


def test_threads_do_not_share_memory():
    cases = [(kind, *make()) for kind in LOSSES for make in (sequential, energy)]
    run = lambda case: [compute(*case, "auto") for _ in range(5)]  # noqa: E731
    alone = [run(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, cases))
    for mine, expected in zip(together, alone, strict=True):
        for a, b in zip(mine, expected, strict=True):
            assert torch.equal(a[0].x_neg, b[0].x_neg)
            torch.testing.assert_close(a[1], b[1], rtol=1e-4, atol=1e-5)


def test_the_stream_goes_on_as_with_sample():
    model, x = energy()
    rng = ChainRNG(5, 7)
    sampler = LangevinDynamics(model, lambda k: 0.1 / (k + 1))
    _, before, _ = terms_by_formulas(model, sampler, Batch(x, x, {}, {}), 4, rng, 0.0)
    assert rng.t == 7 + 3
    expected = sampler.sample(x, 3, seed=ChainRNG(5, 7))
    assert torch.equal(before, expected) and before.shape == x.shape


def arguments(net=None, x=None, **changed):
    net, x = network(3, (4, 5)) if net is None else net, torch.randn(6, 3) if x is None else x
    names = {
        "x": x,
        "start": torch.randn(6, 3),
        "weights": net.weights,
        "biases": net.biases,
        "activation": 0,
        "beta": net.beta,
        "threshold": 20.0,
        **dict.fromkeys(("base_precision", "base_mean", "row_bias", "data_row_bias")),
        "n_steps": 2,
        "step_size": 0.1,
        "noise_std": 0.2,
        "step_sizes": None,
        "noise_stds": None,
        "rng": ChainRNG(1).state(),
        "grad_clip": None,
        "grad_norm_clip": None,
        "displacement_clip": 0.4,
        "lo": None,
        "hi": 1.0,
        "tag": 1,
        "noise_first": False,
        "energy_reg_weight": 0.1,
        "kl_weight": 1.0,
        "entropy_weight": 0.3,
        "entropy_eps": 1e-3,
        "references": torch.randn(9, 3),
        "own": None,
        "y_scale": 1.0,
        "y_offset": 0.0,
    }
    assert changed.keys() <= names.keys()
    return tuple((names | changed).values())


CONDITIONED = {
    **{"base_precision": torch.ones(3), "base_mean": torch.zeros(3)},
    **{"row_bias": torch.randn(6, 4), "data_row_bias": torch.randn(6, 4)},
}


def test_opcheck():
    op = library.op.mlp_contrastive_divergence.default
    torch.library.opcheck(op, arguments())
    torch.library.opcheck(op, arguments(kl_weight=None, references=None, n_steps=0))
    torch.library.opcheck(op, arguments(**CONDITIONED))


def test_errors():
    def fails(match, **changed):
        with pytest.raises(RuntimeError, match=match):
            library.op.mlp_contrastive_divergence.default(*arguments(**changed))

    fails("x must be float32, got Double", x=torch.randn(6, 3).double())
    fails(r"x must have shape \(B, \*event\), and hold something", x=torch.randn(0, 3))
    fails("start must have the shape of x", start=torch.randn(5, 3))
    fails("start must be float32, got Double", start=torch.randn(6, 3).double())
    fails("n_steps must be in 0", n_steps=-1)
    fails("step_size must be finite and >= 0", step_size=-0.1)
    fails(r"step_sizes must have shape \(K or 1, B or 1\)", step_sizes=torch.ones(2, 6))
    fails("must be contiguous", noise_stds=torch.ones(6, 3).T)
    fails("grad_norm_clip must be > 0", grad_norm_clip=0.0)
    fails("displacement_clip must be > 0", displacement_clip=0.0)
    fails("clamp must be", lo=2.0)
    fails("rng must be an int64 tensor of 4 values", rng=torch.zeros(3))
    fails("eps must be finite and > 0", entropy_eps=0.0)
    fails("x and y must have samples of one shape", references=torch.randn(9, 2))
    fails(r"skip must be in -1..8, got 9", own=torch.full((6,), 9))
    fails(r"weights\[0\] must have shape \(outputs, 3\)", net=network(2, (4,)))
    fails("weights must be float32", net=double(network(3, (4,))))
    fails(r"base_mean must have shape \(3,\)", **CONDITIONED | {"base_mean": torch.zeros(4)})
    both = "row_bias and data_row_bias must be given together"
    for name in ("row_bias", "data_row_bias"):
        fails(both, **CONDITIONED | {name: None})
        fails(rf"{name} must have shape \(6, 4\)", **CONDITIONED | {name: torch.ones(5, 4)})


def test_terms_without_references_use_the_other_chains():
    model, x = energy()
    sampler, weights = LangevinDynamics(model, 0.1), LastStepWeights(1.0, 0.3, 1e-3)

    def run(x, references=None):
        batch = Batch(x, x, {}, {}, references=references)
        return terms_by_formulas(model, sampler, batch, 3, ChainRNG(2), 0.0, weights)[0]

    others = run(x)
    given = run(x, References(others.x_neg, torch.arange(len(x)), (1.0, 0.0)))
    entropy = others.metrics["entropy"]
    assert torch.equal(entropy, given.metrics["entropy"]) and entropy != 0
    alone = run(x[:1])
    assert alone.metrics["entropy"] == 0 and alone.loss.isfinite()
