"""The recipes of docs/processes.md with two gloo processes: the weights are those of one process
that has the joined batch."""

import os
from functools import partial

import process_group
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fastebm
from fastebm.distributed import average_gradients, full_state_dict, world

STEPS, ROWS = 5, 16  # rows of all ranks
SHAPES = {"perceptron": (2,), "picture": (1, 8, 8)}


def energy(kind, dtype):
    torch.manual_seed(3)
    if kind == "perceptron":
        layers = [nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1)]
    else:
        layers = [nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 1)]
    return nn.Sequential(*layers).to(dtype)


def criterion(loss, model, net, shape, **options):
    """On ``model``, with chains on ``net``; ``seen`` of it are the negatives of each call."""
    step = _criterion(loss, model, net, shape, **options)
    step.seen = []
    step.register_forward_hook(lambda _, inputs, out: step.seen.append(out.x_neg))
    return step


def _criterion(loss, model, net, shape, **options):
    sampler = fastebm.LangevinDynamics(net, 0.02, clamp=(-2, 2))
    buffer = fastebm.ReplayBuffer(64, shape, reinit_prob=0.2, value_range=(-2, 2))
    if loss == "cd":
        return fastebm.ContrastiveDivergence(model, sampler, 5, **options)
    if loss == "pcd":
        return fastebm.PersistentContrastiveDivergence(model, sampler, buffer, 5, **options)
    return fastebm.ImprovedContrastiveDivergence(model, sampler, buffer, 5, **options)


def data(shape, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return torch.randn((STEPS * ROWS, *shape), generator=g, dtype=torch.float64).to(dtype)


def batches(shape, dtype):
    return [x[world().part(ROWS)] for x in data(shape, dtype).split(ROWS)]


def weights_of(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


# a) b) e) By hand.


class Both(nn.Module):
    """What DDP is put around: model and criterion."""

    def __init__(self, loss, net, shape):
        super().__init__()
        self.net, self.criterion = net, criterion(loss, net, net, shape)

    def forward(self, x):
        return self.criterion(x).loss


def plain(loss, kind, dtype, average=False):
    net, shape = energy(kind, dtype), SHAPES[kind]
    step = criterion(loss, net, net, shape)
    return loop(net, step, lambda x: step(x).loss, kind, dtype, average)


def ddp(loss, kind, dtype):
    net, shape = energy(kind, dtype), SHAPES[kind]
    step = criterion(loss, DistributedDataParallel(net), net, shape)
    return loop(net, step, lambda x: step(x).loss, kind, dtype)


def ddp_of_both(loss, kind, dtype):
    net, shape = energy(kind, dtype), SHAPES[kind]
    both = Both(loss, net, shape)
    return loop(net, both.criterion, DistributedDataParallel(both), kind, dtype)


def loop(net, step, loss_of, kind, dtype, average=False):
    """Weights after each step, and the negatives of this rank."""
    optimizer, weights = torch.optim.SGD(net.parameters(), 0.05), []
    for x in batches(SHAPES[kind], dtype):
        optimizer.zero_grad()
        loss_of(x).backward()
        if average:
            average_gradients(net.parameters())
        optimizer.step()
        weights.append(weights_of(net))
    return weights, step.seen


CASES = [(loss, "picture", torch.float64) for loss in ("cd", "pcd", "icd")]
CASES += [(loss, "perceptron", torch.float64) for loss in ("cd", "pcd", "icd")]
CASES += [(loss, "perceptron", torch.float32) for loss in ("cd", "icd")]  # fused chains
BY_HAND = {"ddp": ddp, "both": ddp_of_both, "average": partial(plain, average=True)}


def by_hand():
    return {name: [work(*case) for case in CASES] for name, work in BY_HAND.items()}


@pytest.fixture(scope="module")
def found():
    return process_group.results(2, by_hand, seconds=90)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i])))
@pytest.mark.parametrize("recipe", BY_HAND)
def test_by_hand(found, recipe, case):
    tolerance = 2e-5 if CASES[case][2] is torch.float32 else 1e-9
    same_run(plain(*CASES[case]), [rank[recipe][case] for rank in found], tolerance)


def same_run(whole, parts, tolerance=1e-9):
    """Whether ranks have the weights of one process, and chains of their own."""
    weights, negatives = whole
    assert all(len(of_rank[0]) == len(weights) for of_rank in parts)
    assert (weights[-1] - weights[0]).abs().max() > 20 * tolerance
    for i in range(len(weights)):
        for ours, _ in parts:
            assert torch.equal(ours[i], parts[0][0][i])
            assert (ours[i] - weights[i]).abs().max() < tolerance, i
        x_neg = [part[i] for _, part in parts]
        assert (x_neg[0] - x_neg[-1]).abs().mean() > 0.1 or len(x_neg) == 1
        torch.testing.assert_close(torch.cat(x_neg), negatives[i], rtol=0, atol=10 * tolerance)


# c) d) By frameworks, in processes that torchrun has started.


def as_torchrun(rank, size):
    os.environ |= {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(size)),
        **{"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"},
        **{"TORCHELASTIC_RUN_ID": "of a test"},
    }


def loader(kind, **options):
    return DataLoader(TensorDataset(data(SHAPES[kind])), ROWS // world().size, **options)


def lightning(loss, kind, seeded=True, epochs=1, path=None, resume=None):
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = energy(kind, torch.float64)
            self.criterion = criterion(loss, self.net, self.net, SHAPES[kind])
            self.rng, self.weights = fastebm.ChainRNG(5), []

        def training_step(self, batch, i):
            return self.criterion(batch[0], seed=self.rng if seeded else None).loss

        def on_train_batch_end(self, *_):
            self.weights.append(weights_of(self.net))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

        def on_save_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = full_state_dict(self)
            checkpoint["rng"] = self.rng.state_dict()

        def on_load_checkpoint(self, checkpoint):
            self.rng.load_state_dict(checkpoint["rng"])

    pl.seed_everything(3, verbose=False)
    module, names = Module(), ("logger", "enable_progress_bar", "enable_model_summary")
    off = dict.fromkeys((*names, "enable_checkpointing"), False)
    strategy = "ddp" if world().size > 1 else "auto"
    options = {"accelerator": "cpu", "devices": world().size, "strategy": strategy, **off}
    trainer = pl.Trainer(max_epochs=epochs, **options)
    rank, size = world()
    # Shuffled, but what all ranks get for a step is the same for any number of them.
    sampler = DistributedSampler(range(STEPS * ROWS), size, rank, drop_last=True)
    trainer.fit(module, loader(kind, sampler=sampler), ckpt_path=resume)
    if path:
        trainer.save_checkpoint(path)
    return module.weights, module.criterion.seen


def accelerated(loss, kind):
    from accelerate import Accelerator

    torch.manual_seed(3)
    accelerator, net = Accelerator(cpu=True), energy(kind, torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    model, optimizer, batches = accelerator.prepare(net, optimizer, loader(kind))
    step, weights = criterion(loss, model, net, SHAPES[kind]), []
    for (x,) in batches:
        optimizer.zero_grad()
        accelerator.backward(step(x).loss)
        optimizer.step()
        weights.append(weights_of(net))
    return weights, step.seen


FRAMEWORKS = {"pytorch_lightning": lightning, "accelerate": accelerated}


def by_framework(name, folder):
    as_torchrun(*world())
    runs = {loss: FRAMEWORKS[name](loss, "picture") for loss in ("pcd", "icd")}
    if name == "pytorch_lightning" and world().size > 1:
        runs["unseeded"] = lightning("icd", "picture", seeded=False)
        lightning("icd", "picture", path=f"{folder}/two")
    return runs


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_frameworks(name, tmp_path):
    pytest.importorskip(name)
    (whole,), parts = (process_group.results(n, by_framework, name, tmp_path) for n in (1, 2))
    for loss, run in whole.items():
        same_run(run, [rank[loss] for rank in parts])
    if name == "pytorch_lightning":
        one, two = (rank["unseeded"] for rank in parts)
        assert all(map(torch.equal, one[0], two[0]))
        assert (one[1][0] - two[1][0]).abs().mean() > 0.1
        work = partial(resumed, f"{tmp_path}/two")
        ((uninterrupted, gone_on),) = process_group.results(1, work)
        same_run(uninterrupted, [gone_on])


def resumed(path):
    """Two epochs on one process, and the second of them after a first on two."""
    as_torchrun(*world())
    whole = lightning("icd", "picture", epochs=2)
    return [run[STEPS:] for run in whole], lightning("icd", "picture", epochs=2, resume=path)
