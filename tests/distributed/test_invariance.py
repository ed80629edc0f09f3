"""N ranks of B chains are one rank of N B: slots, starts and chains to the bit, weights up to the
rounding of sums."""

import math

import process_group
import pytest
import torch
from torch import nn

import fastebm
from fastebm.distributed import average_gradients, full_state_dict, world

ROWS = 8  # of all ranks


class Wells(nn.Module):
    """An energy whose gradient of a row has the same bits in any batch."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 0.6], dtype=dtype))
        self.b = nn.Parameter(torch.tensor([0.5, -0.4], dtype=dtype))

    def forward(self, x):
        return (self.a * x.square() + self.b * x.cos()).sum(1)


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 1)
        ).double()

    def forward(self, x):
        return self.layers(x)


def perceptron():
    return fastebm.energies.MLPEnergy(2, (8, 8))


def criterion(loss, model, sampler, buffer, **options):
    if loss == "cd":
        return fastebm.ContrastiveDivergence(model, sampler, 6, **options)
    if loss == "pcd":
        return fastebm.PersistentContrastiveDivergence(model, sampler, buffer, 6, **options)
    if loss == "mle":
        return fastebm.MaximumLikelihood(model, sampler, 6, **options)
    options = {"n_entropy_refs": 10 if loss == "icd-refs" else None, **options}
    buffer = None if loss == "icd-alone" else buffer
    return fastebm.ImprovedContrastiveDivergence(model, sampler, buffer, 6, **options)


def train(
    make, loss, steps, shape=(2,), lr=0.02, dtype=torch.float32, bad=(), seeded=False, **given
):
    """A run of some steps of ROWS rows; what happened, and the whole buffer at the end."""
    torch.manual_seed(3)
    model = make().to(dtype)
    way, of_buffer = given.pop("way", {}), given.pop("of_buffer", {})
    sampler = fastebm.LangevinDynamics(model, **{"step_size": 0.02, "clamp": (-2, 2), **way})
    buffer = fastebm.ReplayBuffer(
        40, shape, **{"reinit_prob": 0.2, "value_range": (-2, 2), **of_buffer}
    )
    rng = fastebm.ChainRNG(7) if seeded else None
    step = criterion(loss, model, sampler, buffer, energy_reg_weight=0.01, **given)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    rank, size = world()
    seen, data = {"slots": [], "start": [], "x_neg": [], "weights": [], "metrics": []}, step._start

    def start(x, rng):
        found = data(x, rng)
        seen["start"].append(found[0].clone())
        seen["slots"].append(found[1])
        return found

    step._start = start
    for i in range(steps):
        g = torch.Generator().manual_seed(i)
        x = torch.randn((ROWS, *shape), generator=g, dtype=torch.float64).to(dtype)
        if i % 5 == 2:
            for row in bad:
                x[row] = torch.nan
        x = x[world().part(ROWS)]
        out = step(x, seed=rng)
        optimizer.zero_grad()
        out.loss.backward()
        average_gradients(model.parameters())
        if lr:  # which a gradient of NaN would turn to NaN at 0 too
            optimizer.step()
        seen["x_neg"].append(out.x_neg)
        seen["weights"].append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        seen["metrics"].append(fastebm.distributed.average_metrics(out.metrics))
    if buffer.n_pushed:
        seen["buffer"] = full_state_dict(buffer)
    return seen


def several(cases):
    return [train(*CASES[i][0], STEPS[i], **CASES[i][1]) for i in cases]


def rows(parts, name, i):
    found = [p[name][i] for p in parts]
    return None if found[0] is None else torch.cat(found)


UINT8 = {"dtype": torch.uint8}
FIXED = [
    ((Wells, loss), {"lr": 0.0, "kl_weight": 1.0} if "icd" in loss else {"lr": 0.0})
    for loss in ("cd", "pcd", "icd", "icd-refs", "icd-alone", "mle")
]
FIXED += [
    ((Wells, "pcd"), {"lr": 0.0, "of_buffer": {"mode": mode, **more}})
    for mode, more in (("fifo", {}), ("reservoir", UINT8), ("slot", UINT8), ("slot", {"seed": 5}))
]
FIXED += [
    ((Wells, "icd-refs"), {"lr": 0.0, "of_buffer": {"mode": "fifo"}}),
    ((Wells, "icd-refs"), {"lr": 0.0, "of_buffer": UINT8, "seeded": True}),
    ((Wells, "icd"), {"lr": 0.0, "bad": (1, 6, 7), "on_nonfinite": "skip"}),
    ((Wells, "pcd"), {"lr": 0.0, "bad": (1,), "on_nonfinite": "warn"}),
    ((Wells, "pcd"), {"lr": 0.0, "bad": (1,), "on_nonfinite": "count"}),
]  # fmt: skip
PICTURES = {
    "shape": (1, 8, 8),
    "dtype": torch.float64,
    "of_buffer": {"dtype": torch.uint8, "augmentation": fastebm.Augmentation(
        hflip_p=0.5, scale=(0.5, 1.0), value_range=(-2, 2))},
}  # fmt: skip
EXACT = {"dtype": torch.float64}
SKIP = {"bad": (1, 6, 7), "on_nonfinite": "skip", **EXACT}
TRAINED = [(1e-9, (Picture, loss), PICTURES) for loss in ("pcd", "icd", "icd-refs")]
TRAINED += [(1e-9, (perceptron, loss), EXACT) for loss in ("cd", "pcd", "icd-alone", "mle")]
TRAINED += [(1e-9, (perceptron, loss), SKIP) for loss in ("cd", "pcd", "icd", "icd-alone")]
# Steps that adapt to what all ranks' chains accept, and jumps by all ranks' samples.
ADAPTIVE = {"way": {"step_size": "auto", "adjusted": True}, "jumps": 2}
TRAINED += [
    (1e-9, (perceptron, "pcd"), ADAPTIVE | EXACT),
    (2e-5, (perceptron, "pcd"), ADAPTIVE),
    (1e-9, (perceptron, "icd"), {"way": {"step_size": "auto"}, **EXACT}),
]
TRAINED += [
    (2e-5, (perceptron, loss), {"way": way})
    for loss in ("cd", "icd", "icd-alone")
    for way in ({"backend": "fused"}, {"backend": "eager"})
]


CASES = FIXED + [case[1:] for case in TRAINED]
# Four processes take long on two cores: they run few of the cases.
OF_FOUR = [11, len(FIXED) + 1, len(FIXED) + 9]
STEPS = [50 if i in OF_FOUR else 20 for i in range(len(CASES))]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the number of ranks, of each case what every rank saw."""
    return process_group.once(tmp_path_factory, "invariance", all_ranks)


def all_ranks(_):
    chosen = {1: range(len(CASES)), 2: range(len(CASES)), 4: OF_FOUR}
    ran = {n: process_group.results(n, several, cases) for n, cases in chosen.items()}
    return {
        n: dict(zip(chosen[n], zip(*of_ranks, strict=True), strict=True))
        for n, of_ranks in ran.items()
    }


def with_ranks(cases):
    """(number of ranks, case) for all that ran, named after the case's loss."""
    pairs = [(n, i) for n in (2, 4) for i in cases if n == 2 or i in OF_FOUR]
    return [pytest.param(n, i, id=f"{n}-{CASES[i][0][1]}-{i}") for n, i in pairs]


@pytest.mark.parametrize("n, case", with_ranks(range(len(FIXED))))
def test_everything_has_the_same_bits_while_weights_stay(found, n, case):
    (whole,), parts = found[1][case], found[n][case]
    for i in range(STEPS[case]):
        for name in ("slots", "start", "x_neg"):
            ours, theirs = whole[name][i], rows(parts, name, i)
            assert theirs is None if ours is None else torch.equal(ours, theirs), (name, i)
    assert len({m["n_nonfinite"] for m in whole["metrics"]}) == (
        2 if "bad" in CASES[case][1] else 1
    )
    for name, value in whole.get("buffer", {}).items():
        for part in parts:
            same = part["buffer"][name]
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same


@pytest.mark.parametrize("n, case", with_ranks(range(len(FIXED), len(CASES))))
def test_weights_are_the_same_up_to_rounding(found, n, case):
    tolerance, _, options = TRAINED[case - len(FIXED)]
    (whole,), parts = found[1][case], found[n][case]
    moved = (whole["weights"][-1] - whole["weights"][0]).abs().max()
    assert moved > 1e3 * tolerance
    for i in range(STEPS[case]):
        ours, theirs = whole["slots"][i], rows(parts, "slots", i)
        assert ours is None or torch.equal(ours, theirs)
        for part in parts:
            assert torch.equal(part["weights"][i], parts[0]["weights"][i])
            assert (part["weights"][i] - whole["weights"][i]).abs().max() < tolerance
        if "bad" in options:  # of four ranks the last one has two rows, both bad
            none_left = n == 4 and i % 5 == 2
            assert math.isnan(parts[0]["metrics"][i]["energy_pos"]) == none_left
            continue
        for name, value in whole["metrics"][i].items():
            assert parts[0]["metrics"][i][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
