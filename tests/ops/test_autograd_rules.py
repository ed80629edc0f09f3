"""What autograd and streams are promised by every operator: a change in place counts as one, a
tangent is refused, and what a stream is read at is in range before anything is written."""

import pytest
import torch
from torch.autograd import forward_ad

from fastebm import ChainRNG, knn_entropy, ops
from fastebm.ops import bernoulli, choice, neighbor
from fastebm.ops.hamiltonian import hmc_step_
from fastebm.ops.metropolis import metropolis_step_, population_jump
from fastebm.ops.mlp.adjusted import mlp_adjusted_chain_
from fastebm.ops.mlp.chain import mlp_chain_
from fastebm.ops.mlp.gradient import mlp_gradient
from fastebm.ops.mlp.loss import mlp_adjusted_contrastive_divergence, mlp_contrastive_divergence
from fastebm.ops.mlp.network import Network

RNG = ChainRNG(0).state()


def network():
    return Network([torch.randn(4, 2), torch.randn(1, 4)], [torch.randn(4), None], "silu")


def gather(x, **options):
    return ops.replay_gather(x, torch.tensor([0]), options.pop("rng", RNG), **options)


def adjusted(x, rng=RNG, energy=None, grad=None, acceptance=None, **options):
    n = len(x)
    energy = torch.zeros(n) if energy is None else energy
    grad = torch.zeros(n, 2) if grad is None else grad
    sums = torch.zeros(2, n) if acceptance is None else acceptance
    mlp_adjusted_chain_(x, energy, grad, sums, network(), 1, 0.1, 0.5, rng, **options)
    return x


def metropolis(x, rng=RNG, decide=True, **options):
    """A decision about a point far below, with some of the tensors it is of, and a proposal."""
    n, mine = len(x), {k: options.pop(k) for k in ("energy", "grad", "sums", "y") if k in options}
    state = {"energy": torch.zeros(n), "grad": torch.zeros(n, 2), "sums": torch.zeros(2, n)}
    state |= {"y": torch.full((n, 2), 0.01), **mine}
    ends = (torch.full((n,), -9.0), torch.ones(n, 2)) if decide else (None, None)
    if decide:
        options["next_step"] = 0.1, 0.5
    metropolis_step_(x, *state.values(), *ends, 0.1, 0.5, rng, **options)
    return x


def hamiltonian(x, rng=RNG, ends=True, **options):
    """The same of a trajectory."""
    n, names = len(x), ("energy", "grad", "y", "v", "kinetic", "acceptance", "divergent")
    mine = {k: options.pop(k) for k in names if k in options}
    zero, rows = torch.zeros(n), torch.zeros(n, 2)
    values = (zero, rows, rows + 0.01, rows.clone(), zero.clone(), zero.clone(), zero.int())
    state = dict(zip(names, values, strict=True)) | mine
    e_y = torch.full((n,), -9.0 if "divergent" not in mine else torch.inf)
    if ends:
        options["next_step"] = 0.1, 1.0
    got = (e_y, torch.ones(n, 2)) if ends else (None, None)
    hmc_step_(x, *state.values(), *got, 0.1, 1.0, rng, **options)
    return x


# Each changes a tensor of its kind: operator -> (a tensor, its change).
CHANGES = {
    "langevin_step_": (torch.zeros(3, 2), lambda x: ops.langevin_step_(x, None, 0.0, 1.0, RNG)),
    "langevin_step_, strides": (
        torch.zeros(2, 3).T,
        lambda x: ops.langevin_step_(x, None, 0.0, 1.0, RNG),
    ),
    "bernoulli_sigmoid_": (torch.zeros(3, 2), lambda x: bernoulli.bernoulli_sigmoid_(x, RNG)),
    "mlp_chain_": (torch.zeros(3, 2), lambda x: mlp_chain_(x, network(), 1, 0.1, 0.1, RNG)),
    "mlp_chain_, energy": (
        torch.zeros(3),
        lambda e: mlp_chain_(torch.zeros(3, 2), network(), 1, 0.1, 0.1, RNG, energy=e),
    ),
    "mlp_chain_, grad": (
        torch.zeros(3, 2),
        lambda g: mlp_chain_(torch.zeros(3, 2), network(), 1, 0.1, 0.1, RNG, grad=g),
    ),
    "mlp_adjusted_chain_": (torch.zeros(3, 2), adjusted),
    "mlp_adjusted_chain_, energy": (
        torch.zeros(3),
        lambda e: adjusted(torch.zeros(3, 2), energy=e),
    ),
    "mlp_adjusted_chain_, grad": (
        torch.zeros(3, 2),
        lambda g: adjusted(torch.zeros(3, 2), grad=g),
    ),
    "mlp_adjusted_chain_, acceptance": (
        torch.zeros(2, 3),
        lambda a: adjusted(torch.zeros(3, 2), acceptance=a),
    ),
    "metropolis_step_": (torch.zeros(3, 2), metropolis),
    **{
        f"metropolis_step_, {name}": (
            torch.zeros(shape),
            lambda v, name=name: metropolis(torch.zeros(3, 2), **{name: v}),
        )
        for name, shape in {"energy": 3, "grad": (3, 2), "sums": (2, 3), "y": (3, 2)}.items()
    },
    "hmc_step_": (torch.zeros(3, 2), hamiltonian),
    **{
        f"hmc_step_, {name}": (
            torch.zeros(shape, dtype=torch.int32 if name == "divergent" else None),
            lambda v, name=name: hamiltonian(torch.zeros(3, 2), **{name: v}),
        )
        for name, shape in {
            **{"energy": 3, "grad": (3, 2), "y": (3, 2), "v": (3, 2), "kinetic": 3},
            **{"acceptance": 3, "divergent": 3},
        }.items()
    },
    "mlp_gradient, grad": (
        torch.zeros(3, 2),
        lambda g: mlp_gradient(network(), torch.ones(3, 2), grad=g),
    ),
    "mlp_gradient, to_row_bias": (
        torch.zeros(3, 4),
        lambda rows: mlp_gradient(
            network()._replace(row_bias=torch.ones(3, 4)),
            torch.ones(3, 2),
            **{"n_data": 3, "factor": 1.0, "sums": torch.zeros(17), "to_row_bias": rows},
        ),
    ),
    "mlp_gradient, sums": (
        torch.zeros(17),
        lambda s: mlp_gradient(network(), torch.ones(3, 2), n_data=3, factor=1.0, sums=s),
    ),
    "replay_gather, visits": (
        torch.zeros(3, dtype=torch.int32),
        lambda v: gather(torch.zeros(3, 2), visits=v),
    ),
}


@pytest.mark.parametrize("start, change", CHANGES.values(), ids=CHANGES)
def test_a_change_in_place_is_one_for_autograd(start, change):
    x = start.clone()
    before = x._version
    change(x)
    assert x._version > before and not torch.equal(x, start)
    if not x.is_floating_point():
        return
    leaf = start.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="requires a gradient, which is not recorded"):
        change(leaf)
    with pytest.raises(RuntimeError, match="requires a gradient, which is not recorded"):
        change(leaf * 1)
    assert torch.equal(leaf, start)
    with torch.no_grad():
        change(leaf)
    assert not torch.equal(leaf, start)


def test_graph_made_before_a_step_is_not_differentiated_after_it():
    x, w = torch.ones(2, 2), torch.ones(2, 2, requires_grad=True)
    energy = (w * x).sum()
    ops.langevin_step_(x, torch.ones(2, 2), 5.0, 0.0, RNG)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        energy.backward()


def test_the_operator_itself_refuses_what_torch_does():
    leaf = torch.nn.Parameter(torch.zeros(2))
    with torch.inference_mode():
        made_there = torch.zeros(2)
        bernoulli.bernoulli_sigmoid_(torch.zeros(2), RNG)
    for x in (leaf, made_there):
        with pytest.raises(RuntimeError, match="logits may not be changed in place, as"):
            torch.ops.fastebm.bernoulli_sigmoid_.default(x, RNG, 0, None, 1.0, 1)
        assert torch.equal(x, torch.zeros(2))


def adjusted_loss(x, n_steps=2, rng=RNG):
    noise = None, 1.0, 1.0
    return mlp_adjusted_contrastive_divergence(x, x, network(), n_steps, 0.1, noise, rng)


X = torch.randn(6, 2)
FUNCTIONS = {
    "langevin_step, x": lambda v: ops.langevin_step(v, X, 0.1, 0.0, RNG),
    "langevin_step, grad": lambda v: ops.langevin_step(X, v, 0.1, 0.0, RNG),
    "langevin_step, step": lambda v: ops.langevin_step(X, X, v[:, 0].square(), 0.0, RNG),
    "langevin_step_, grad": lambda v: ops.langevin_step_(X.clone(), v, 0.1, 0.0, RNG),
    "bernoulli_sigmoid": lambda v: bernoulli.bernoulli_sigmoid(v, RNG),
    "bernoulli_sigmoid_": lambda v: bernoulli.bernoulli_sigmoid_(v.clone(), RNG),
    "nearest_neighbor, x": lambda v: neighbor.nearest_neighbor(v, X + 5)[0],
    "nearest_neighbor, y": lambda v: neighbor.nearest_neighbor(X, v + 5)[0],
    "nn_log_distance": lambda v: neighbor.nn_log_distance(v, X, None, 0.1)[0],
    "knn_entropy": knn_entropy,
    "replay_gather": lambda v: gather(v)[0],
    "mlp_chain_": lambda v: mlp_chain_(v.clone(), network(), 1, 0.1, 0.1, RNG),
    "mlp_adjusted_chain_": lambda v: adjusted(v.clone()),
    "metropolis_step_": lambda v: metropolis(v.clone()),
    "hmc_step_": lambda v: hamiltonian(v.clone()),
    "population_jump": lambda v: population_jump(v, X, torch.ones(len(X)), RNG)[0],
    "neighbor_means": lambda v: neighbor.neighbor_means(v, torch.arange(3), 2)[0],
    "mlp_gradient": lambda v: mlp_gradient(network(), v),
    "mlp_adjusted_contrastive_divergence": lambda v: adjusted_loss(v)[0],
    "mlp_contrastive_divergence": lambda v: mlp_contrastive_divergence(
        X, X, network()._replace(weights=[v[:4], torch.ones(1, 4)]), 1, 0.1, 0.1, RNG
    )[4],
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_tangent_is_refused(function):
    with pytest.raises(RuntimeError, match="no forward-mode derivative, and .* has a tangent"):
        torch.func.jvp(function, (X.clone(),), (X,))
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="no forward-mode derivative, and .* has a tangent"):
            function(forward_ad.make_dual(X.clone(), X))
        function(X.clone())  # what has none is as ever


@pytest.mark.parametrize(
    "step", [ops.langevin_step, lambda x, g, *_: neighbor.nearest_neighbor(x, g)[0]]
)
def test_a_tangent_of_what_comes_back_is_refused(step):
    x = X.clone().requires_grad_()
    out = step(x, X + 5, 0.1, 0.0, RNG)
    with forward_ad.dual_level():
        v = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(RuntimeError, match="has a tangent"):
            torch.autograd.grad(out, x, v)


STREAMS = {
    "langevin_step_": lambda x, rng, **o: ops.langevin_step_(x, None, 0.0, 1.0, rng, **o),
    "langevin_step": lambda x, rng, **o: ops.langevin_step(x, x, 0.0, 1.0, rng, **o),
    "bernoulli_sigmoid": lambda x, rng, **o: bernoulli.bernoulli_sigmoid(x, rng, **o),
    "bernoulli_sigmoid_": lambda x, rng, **o: bernoulli.bernoulli_sigmoid_(x, rng, **o),
    "replay_gather": lambda x, rng, **o: gather(x[:1], rng=rng, **o),
    "mlp_chain_": lambda x, rng, **o: mlp_chain_(x, network(), 1, 0.0, 1.0, rng, **o),
    "mlp_adjusted_chain_": adjusted,
    "metropolis_step_": lambda x, rng, **o: metropolis(x, rng, decide=False, **o),
    "hmc_step_": lambda x, rng, **o: hamiltonian(x, rng, ends=False, **o),
    "population_jump": lambda x, rng, **o: population_jump(x, X, torch.ones(len(X)), rng, **o),
}


@pytest.mark.parametrize("call", STREAMS.values(), ids=STREAMS)
def test_streams_end(call):
    def fails(match, t=0, offset=0, step=0, **options):
        x = torch.zeros(1, 2)
        with pytest.raises(RuntimeError, match=match):
            call(x, torch.tensor([0, step, offset, 0]), t=t, **options)
        assert torch.equal(x, torch.zeros(1, 2))

    last = 2**32 - 1
    call(torch.zeros(1, 2), torch.tensor([0, last - 1, 2**56 - 1, 0]), t=1)
    fails("t, the steps taken, would pass its end", step=last, t=1)
    fails(r"t must be in 0..2\^32 - 1, got 4294967296", t=2**32)
    fails("rng must hold a step in", step=2**32)
    fails("rng must hold a step in", step=-1)
    for offset in (-1, 2**56):
        fails("rng must hold a sample_offset in", offset=offset)
        ids = torch.tensor([offset])
        fails(f"sample_ids must be in .*, got {offset} for sample 0", sample_ids=ids)


def test_a_chain_that_would_pass_the_end_does_not_begin():
    x = torch.zeros(3, 2)
    with pytest.raises(RuntimeError, match="rng is at 4294967294, t is 0, for 3 steps"):
        mlp_chain_(x, network(), 3, 0.1, 0.1, ChainRNG(0, 2**32 - 2).state())
    with pytest.raises(RuntimeError, match="rng is at 4294967294, t is 0, for 3 steps"):
        rng = ChainRNG(0, 2**32 - 2).state()
        mlp_contrastive_divergence(x, x, network(), 2, 0.1, 0.1, rng)
    with pytest.raises(RuntimeError, match="rng is at 4294967294, t is 0, for 3 steps"):
        adjusted_loss(x, 3, rng)
    assert torch.equal(x, torch.zeros(3, 2))


def test_messages_do_not_name_a_source():
    with pytest.raises(RuntimeError) as error:
        choice.choose_slots(RNG, 1, 2)
    assert str(error.value) == "choose_slots: n must be in 0..1, the size, got 2"
