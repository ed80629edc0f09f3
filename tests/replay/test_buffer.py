"""The replay buffer: its modes, restarts, uint8 storage, randomness and exact resume."""

import io
import math

import pytest
import torch

from fastebm import Augmentation
from fastebm.replay.buffer import ReplayBuffer

MODES = ("slot", "fifo", "reservoir")


def numbered(start, n):
    """n samples of shape (1,), each its own number."""
    return torch.arange(start, start + n).float()[:, None]


def marked(n):
    return torch.full((n, 1), -7.0)


def test_slots_are_distinct_and_written_back():
    buffer = ReplayBuffer(10, (2,), reinit_prob=0.0, seed=0)
    assert len(buffer) == 10 and (buffer.all() >= 0).all() and (buffer.all() < 1).all()
    before = buffer.all().clone()
    x, idx = buffer.sample(6)
    assert idx.unique().numel() == 6
    assert torch.equal(x, before[idx])
    buffer.push(x + 5, idx)
    before[idx] += 5
    assert torch.equal(buffer.all(), before)
    assert torch.equal(buffer.sample(10)[1].sort().values, torch.arange(10))


def test_slots_are_drawn_evenly():
    buffer = ReplayBuffer(8, (1,), seed=0)
    draws = torch.cat([buffer.sample(3)[1] for _ in range(4000)])
    count = draws.bincount(minlength=8).double()
    # Share 3/8 of 4000 draws: chi-square with 7 degrees, scaled by 1 - 3/8; 24.3 is its 99.9 %.
    assert ((count - 1500) ** 2 / (1500 * (1 - 3 / 8))).sum() * 7 / 8 < 24.3


@pytest.mark.parametrize("mode", MODES)
def test_restarts(mode):
    p, n = 0.2, 20_000
    buffer = ReplayBuffer(n, (1,), reinit_prob=p, mode=mode, init=marked, seed=0)
    x, idx = buffer.sample(n)
    assert (x == -7).all()  # nothing else is there yet
    assert ((idx >= 0) if mode == "slot" else (idx == -1)).all()
    buffer.push(numbered(0, n), torch.arange(n))
    x, idx = buffer.sample(n)
    fresh = x[:, 0] == -7
    assert abs(fresh.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert torch.equal(x[~fresh, 0], idx[~fresh].float())  # sample i is in slot i
    if mode != "slot":
        assert torch.equal(idx == -1, fresh)


@pytest.mark.parametrize("mode", ["fifo", "reservoir"])
def test_filling_up(mode):
    buffer = ReplayBuffer(10, (1,), reinit_prob=0.0, mode=mode, init=marked, seed=0)
    assert len(buffer) == 0 and buffer.all().shape == (0, 1)
    buffer.push(numbered(0, 4))
    x, idx = buffer.sample(6)
    assert len(buffer) == 4 and sorted(x[:4, 0].tolist()) == [0, 1, 2, 3]
    assert (x[4:] == -7).all() and idx[4:].tolist() == [-1, -1]
    assert torch.equal(idx[:4].float(), x[:4, 0])


def test_fifo_keeps_the_last():
    buffer = ReplayBuffer(5, (1,), mode="fifo", seed=0)
    for start, n in ((0, 3), (3, 4), (7, 1), (8, 5)):
        buffer.push(numbered(start, n))
        expected = range(max(0, start + n - 5), start + n)
        assert sorted(buffer.all()[:, 0].tolist()) == list(expected)


@pytest.mark.parametrize("batch", [1, 7])
def test_reservoir_keeps_every_sample_with_the_same_probability(batch):
    capacity, total, runs = 7, 28, 1000
    count = torch.zeros(total)
    buffer = ReplayBuffer(capacity, (1,), mode="reservoir", seed=0)
    for _ in range(runs):
        buffer.n_pushed = 0
        for start in range(0, total, batch):
            buffer.push(numbered(start, batch))
        kept = buffer.all()[:, 0].long()
        assert kept.unique().numel() == capacity
        count[kept] += 1
    p = capacity / total
    z = (count - runs * p) / math.sqrt(runs * p * (1 - p))
    # 28 scores that sum to zero, about normal: 55.5 is the 99.9 % point of chi-square with 27.
    assert (z**2).sum() < 55.5


def test_reservoir_keeps_rows_whole_when_slots_collide():
    buffer = ReplayBuffer(4, (3,), mode="reservoir", seed=0)
    for start in range(0, 400, 4):
        buffer.push(numbered(start, 4).expand(4, 3))
        stored = buffer.all()
        assert (stored == stored[:, :1]).all() and stored[:, 0].unique().numel() == 4


def test_uint8_does_not_drift_and_does_not_wrap():
    u = torch.linspace(0, 1, 20_001)[:-1, None].repeat(4, 1)
    x = 3 * u - 1  # in [-1, 2)
    buffer = ReplayBuffer(
        len(x), (1,), 0.0, init=lambda n: x, dtype=torch.uint8, value_range=(-1, 2), seed=0
    )
    assert (buffer.all() - x).abs().max() <= 3 / 512 + 1e-5  # half a step
    n, step = len(x), 3 / 256
    for _ in range(20):
        y, idx = buffer.sample(n)
        buffer.push(y, idx)
    y, idx = buffer.sample(n)
    # Each sample is still in its step: nothing accumulates, over 20 trips of 80,000 samples.
    assert (y - x[idx]).abs().max() <= step
    error = (y - x[idx]).mean().item()
    assert abs(error) < 4 * step / math.sqrt(6 * n)  # variance of U - U' is step^2 / 6
    ends = torch.tensor([[-5.0], [-1.0], [2.0], [9.0]])
    buffer.push(ends, torch.arange(4))
    assert buffer.data[:4, 0].tolist() == [0, 0, 255, 255]


def test_storage_and_sample_types():
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        buffer = ReplayBuffer(4, (1, 2, 2), dtype=dtype, seed=0)
        assert buffer.data.dtype == dtype
        assert buffer.sample(2)[0].dtype == buffer.all().dtype == torch.float32
        assert buffer.sample(2)[0].shape == (2, 1, 2, 2)
    normal = ReplayBuffer(4000, (3,), init="normal", seed=0).all()
    assert abs(normal.mean()) < 0.04 and abs(normal.std() - 1) < 0.03
    wide = ReplayBuffer(1000, (3,), value_range=(-3, 5), seed=0).all()
    assert -3 <= wide.min() < -2.9 and 4.9 < wide.max() < 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_augmentation_moves_what_is_drawn_and_nothing_else(mode, dtype):
    n, shape = 400, (3, 8, 8)
    flip = Augmentation(hflip_p=1.0)
    buffer = ReplayBuffer(
        n, shape, 0.3, mode, init="normal", dtype=dtype, augmentation=flip, seed=0
    )
    pushed = torch.rand(n, *shape)
    buffer.push(pushed, torch.arange(n))
    x, idx = buffer.sample(n)
    step = 1 / 256 if dtype == torch.uint8 else 0
    near = ((x - pushed[idx].flip(-1)).abs() <= step).flatten(1).all(1)
    assert abs(near.double().mean() - 0.7) < 4 * math.sqrt(0.3 * 0.7 / n)
    assert abs(x[~near].std() - 1) < 0.1 and (mode == "slot" or torch.equal(idx == -1, ~near))
    for untouched in (buffer.all(), buffer.references(idx)[0]):
        u = untouched if dtype == torch.float32 or untouched.is_floating_point() else None
        assert u is None or (u - pushed).abs().max() <= step


def test_references_are_stored_samples_and_know_their_slots():
    buffer = ReplayBuffer(9, (1,), init=lambda n: numbered(0, n), seed=0)
    slots = torch.arange(9)
    y, own, _ = buffer.references(slots, 4)
    assert y.shape == (4, 1) and y.unique().numel() == 4
    assert (own >= 0).sum() == 4
    for slot, at in enumerate(own.tolist()):
        assert at == -1 or y[at, 0] == slot
    y, own, _ = buffer.references(slots)
    assert torch.equal(y, buffer.all()) and own is slots
    assert y.data_ptr() == buffer.data.data_ptr()  # the whole buffer is not copied
    fifo = ReplayBuffer(9, (1,), mode="fifo", seed=0)
    fifo.push(numbered(0, 2))
    y, own, _ = fifo.references(torch.tensor([1, -1, 0]), 5)
    assert y[:, 0].tolist() == [0, 1] and own.tolist() == [1, -1, 0]
    fifo.push(numbered(2, 5))
    own = fifo.references(torch.tensor([-1, 3]), 3).own
    assert own[0] == -1


def test_every_choice_is_another():
    buffer = ReplayBuffer(1000, (1,), 0.0, init=lambda n: numbered(0, n), seed=0)
    slots = torch.arange(5)
    chosen = [buffer.sample(20)[1].tolist()]
    chosen += [buffer.references(slots, 20).y[:, 0].long().tolist() for _ in range(3)]
    chosen += [buffer.sample(20)[1].tolist() for _ in range(2)]
    assert len(set(map(tuple, chosen))) == 6
    again = ReplayBuffer(1000, (1,), 0.0, init=lambda n: numbered(0, n), seed=0)
    assert again.sample(20)[1].tolist() == chosen[0]


def test_uint8_references_come_with_their_scale():
    buffer = ReplayBuffer(50, (3,), dtype=torch.uint8, value_range=(-2, 6), seed=0)
    y, _, (scale, offset) = buffer.references(torch.arange(5))
    assert y.dtype == torch.uint8
    torch.testing.assert_close(y * scale + offset, buffer.all())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_resume_is_bitwise(mode, dtype):
    def run(buffer, n):
        out = []
        for _ in range(n):
            x, idx = buffer.sample(5)
            buffer.push((x * 0.9).clamp(0, 1), idx)
            out += [x, idx, buffer.all(), buffer.references(idx, 3).y]
        return out

    def make(seed):
        augmentation = Augmentation.preset("cifar10")
        options = {"dtype": dtype, "augmentation": augmentation, "seed": seed}
        return ReplayBuffer(8, (3, 4, 4), 0.3, mode, **options)

    whole = make(1)
    run(whole, 4)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = make(2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(run(whole, 4), run(resumed, 4), strict=True))


def test_seed_and_generator():
    a, b = (ReplayBuffer(5, (2,), seed=3).all() for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, ReplayBuffer(5, (2,), seed=4).all())
    torch.manual_seed(0)
    a = ReplayBuffer(5, (2,)).all()
    g = torch.Generator().manual_seed(0)
    assert torch.equal(a, ReplayBuffer(5, (2,), generator=g).all())
    buffer = ReplayBuffer(5, (2,), dtype=torch.uint8, seed=3)
    state = buffer.stream.clone()
    buffer.all()  # looking draws nothing
    assert torch.equal(state, buffer.stream)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"capacity": 0}, "capacity must be"),
        ({"reinit_prob": 1.5}, "reinit_prob must be"),
        ({"mode": "ring"}, "mode must be one of slot, fifo, reservoir"),
        ({"init": "zeros"}, "init must be"),
        ({"init": lambda n: torch.zeros(n, 3)}, r"init\(4\) must return"),
        ({"dtype": torch.int32}, "dtype must be"),
        ({"value_range": (1, 1)}, "value_range must be"),
        ({"augmentation": Augmentation(hflip_p=0.5)}, "hflip_p needs images"),
        (
            {"augmentation": Augmentation(hflip_p=1), "shape": (3, 8, 8), "value_range": (-1, 1)},
            "augmentation must have the buffer's value_range",
        ),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        ReplayBuffer(**{"capacity": 4, "shape": (2,), **arguments})


def test_wrong_calls():
    buffer = ReplayBuffer(4, (2,))
    for n in (0, 5):
        with pytest.raises(ValueError, match=r"n must be in 1\.\.4"):
            buffer.sample(n)
    with pytest.raises(ValueError, match="slots of x in mode slot, got None"):
        buffer.push(torch.zeros(2, 2))
    for shape in ((2, 3), (2,), (5, 2)):
        with pytest.raises(ValueError, match="x must be"):
            buffer.push(torch.zeros(shape), torch.arange(2))
    with pytest.raises(ValueError, match="mode 'fifo'"):
        buffer.load_state_dict(ReplayBuffer(4, (2,), mode="fifo").state_dict())
