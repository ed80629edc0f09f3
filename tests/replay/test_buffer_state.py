"""What a buffer holds stays what it is: other dtypes, states of other buffers, modes of torch."""

import copy

import pytest
import torch
from torch import nn
from torch_modes import each_mode

from fastebm import Augmentation, LangevinDynamics, PersistentContrastiveDivergence
from fastebm.replay.buffer import DTYPES, ReplayBuffer

U8, BF16, F32 = torch.uint8, torch.bfloat16, torch.float32


def make(dtype=F32, value_range=(-1, 1), seed=0, **options):
    return ReplayBuffer(6, (2,), dtype=dtype, value_range=value_range, seed=seed, **options)


@pytest.mark.parametrize("source", [U8, BF16, F32])
@pytest.mark.parametrize("assign", [False, True])
def test_float32_takes_the_samples_of_any_dtype(source, assign):
    """uint8 at the middle of its steps, whatever the range of the buffer that takes them."""
    saved, buffer = make(source, (-1, 3)), make(F32, (0, 1), seed=1)
    buffer.load_state_dict(saved.state_dict(), assign=assign)
    assert buffer.data.dtype == F32 and torch.equal(buffer.all(), saved.all())
    assert torch.equal(buffer.stream, saved.stream)


def test_a_state_that_does_not_fit_is_refused_and_nothing_changes():
    fifo, small = make(mode="fifo"), ReplayBuffer(5, (2,))
    damaged = make().state_dict()
    damaged["_extra_state"]["n_pushed"] = -1
    for buffer, state, match in [
        (make(U8), make(F32).state_dict(), r"are torch.float32, this buffer is torch.uint8 of"),
        (make(BF16), make(F32).state_dict(), "bfloat16 .*: they would be rounded"),
        (make(BF16), make(U8).state_dict(), r"uint8 of value_range \(-1.0, 1.0\), this buffer is"),
        (make(U8), make(U8, (0, 1)).state_dict(), r"\(0.0, 1.0\), .* of value_range \(-1.0, 1.0\)"),
        (make(), fifo.state_dict(), "mode 'fifo', this buffer is 'slot'"),
        (make(), small.state_dict(), r"state's data must be \(6, 2\), got \(5, 2\)"),
        (make(), damaged, "the state's n_pushed must be an integer >= 0, got -1"),
    ]:
        before = copy.deepcopy(buffer.state_dict())
        whole = nn.ModuleDict({"buffer": buffer})  # as in a criterion or a LightningModule
        with pytest.raises(ValueError, match=match):
            whole.load_state_dict({f"buffer.{name}": value for name, value in state.items()})
        for name, value in buffer.state_dict().items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(value, before[name]), (match, name)


def test_states_of_before_the_range_was_kept():
    for dtype in DTYPES:
        saved, buffer = make(dtype), make(dtype, seed=1)
        state = saved.state_dict()
        del state["_extra_state"]["value_range"]
        buffer.load_state_dict(state)
        assert torch.equal(buffer.all(), saved.all())
    with pytest.raises(ValueError, match="uint8 of value_range None"):
        make(F32).load_state_dict(state)


class Start(nn.Module):
    """Initial samples by a module, which is cast like any other."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([0.25, -0.5]))

    def forward(self, n):
        return self.at.expand(n, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_of_a_module_leave_the_samples_alone(dtype):
    buffer = make(dtype, init=Start())
    loss = PersistentContrastiveDivergence(
        net := nn.Linear(2, 1), LangevinDynamics(net, 0.1), buffer
    )
    before = {name: getattr(buffer, name).clone() for name in buffer.tensors}
    for cast in (
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.type(torch.float16),
        lambda m: m.double(),
    ):
        cast(loss)
        for name in buffer.tensors:
            value = getattr(buffer, name)
            assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    assert buffer.init.at.dtype == torch.float64 and not buffer.data.is_shared()
    loss.share_memory()
    assert buffer.data.is_shared()
    net.double()
    out = loss(torch.randn(3, 2).double())  # as under Lightning's 64-true
    assert out.x_neg.dtype == torch.float64 and out.loss.isfinite()
    assert not torch.equal(buffer.data, before["data"])
    moved = loss.to("meta")
    assert buffer.data.device.type == "meta" and buffer.data.dtype == dtype
    moved.to_empty(device="cpu")
    assert buffer.data.device.type == "cpu" and buffer.data.dtype == dtype


@pytest.mark.parametrize("buffer_mode", ["slot", "fifo", "reservoir"])
@each_mode
def test_modes_of_torch_change_nothing(mode, buffer_mode):
    """A buffer that is made in a mode, used in it, and used after it."""

    def first(make=make):
        options = {"augmentation": Augmentation(hflip_p=0.5), "mode": buffer_mode, "seed": 3}
        return ReplayBuffer(8, (1, 4, 4), 0.3, device="cpu", **options)

    def use(buffer):
        out = []
        for _ in range(4):
            x, idx = buffer.sample(5)
            buffer.push((x * 0.9).clamp(0, 1), idx)
            out += [x, idx, buffer.all(), buffer.references(idx, 3).y]
        other = ReplayBuffer(8, (1, 4, 4), mode=buffer_mode, device="cpu")
        other.load_state_dict(buffer.state_dict())
        return [*out, other.all()]

    plain = first()
    expected = [use(plain), use(plain)]
    with mode():
        buffer = first().to("cpu").float()
        got = [use(buffer)]
    got.append(use(buffer))
    for a, b in zip(expected, got, strict=True):
        assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_slots_are_looked_at_before_anything_is_stored():
    buffer = make()
    before = buffer.all()
    for idx, match in (
        ([0, -1], r"idx must be in 0\.\.5, the slots, got -1"),
        ([0, 6], r"idx must be in 0\.\.5, the slots, got 6"),
        ([True, False], r"idx must be int64 .*, got torch.bool \(2,\)"),
    ):
        with pytest.raises(ValueError, match=match):
            buffer.push(torch.full((2, 2), 9.0), torch.tensor(idx))
    assert torch.equal(buffer.all(), before) and buffer.n_pushed == 0
    with pytest.raises(ValueError, match="capacity of this ReplayBuffer, got a batch of 7"):
        buffer.sample(7)
