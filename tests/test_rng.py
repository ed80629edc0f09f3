"""Seeds and generators: what a user of torch expects, and a checkpoint of three integers."""

import pytest
import torch

from fastebm import ChainRNG
from fastebm.rng import as_rng


def test_state_holds_the_bits_of_the_key():
    assert ChainRNG(5, 6, 7).state().tolist() == [5, 6, 7, 0]
    assert ChainRNG(2**64 - 1).state()[0] == -1
    assert ChainRNG(-1).state()[0] == -1
    assert ChainRNG(2**63).state()[0] == -(2**63)


def test_manual_seed_decides():
    torch.manual_seed(3)
    first, second = as_rng(), as_rng()
    assert first.seed != second.seed
    torch.manual_seed(3)
    assert as_rng().seed == first.seed and as_rng().seed == second.seed


def test_generator_decides_and_leaves_the_default_one_alone():
    before = torch.get_rng_state()
    seeds = [as_rng(generator=torch.Generator().manual_seed(4)).seed for _ in range(2)]
    assert seeds[0] == seeds[1] != as_rng(generator=torch.Generator().manual_seed(5)).seed
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_use_all_64_bits():
    keys = torch.tensor(
        [(ChainRNG.from_generator().seed + 2**64) % 2**64 for _ in range(200)], dtype=torch.uint64
    )
    bits = torch.stack([keys.view(torch.int64) >> i & 1 for i in range(64)]).double().mean(1)
    assert ((bits - 0.5).abs() < 5 * 0.5 / 200**0.5).all()


def test_int_seed_starts_afresh_and_a_stream_continues():
    assert as_rng(7).state().tolist() == as_rng(7).state().tolist()
    stream = ChainRNG(7)
    assert as_rng(stream) is stream


def test_checkpoint_is_three_integers():
    stream = ChainRNG(2**64 - 3, 5, 9)
    stream.advance(10)
    saved = stream.state_dict()
    assert saved == {"seed": 2**64 - 3, "t": 15, "sample_offset": 9}
    other = ChainRNG(0)
    other.load_state_dict(saved)
    assert torch.equal(other.state(), stream.state())
    assert repr(other) == f"ChainRNG(seed={2**64 - 3}, t=15, sample_offset=9)"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(seed=2**64), "seed must be an integer in .*, got 18446744073709551616"),
        (dict(seed=1.5), "seed must be an integer in .*, got 1.5"),
        (dict(seed="7"), "seed must be an integer in .*, got '7'"),
        (dict(seed=True), "seed must be an integer in .*, got True"),
        (dict(seed=1, t=-1), r"t must be an integer in 0\.\.4294967295, got -1"),
        (dict(seed=1, sample_offset=2**56), "sample_offset must be an integer in"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChainRNG(**arguments)


def test_seed_and_generator_together():
    with pytest.raises(ValueError, match="seed or generator, not both"):
        as_rng(1, torch.Generator())


def test_steps_run_out_loudly():
    stream = ChainRNG(1, 2**32 - 3)
    stream.check_room(2)
    for ask in (stream.check_room, stream.advance):
        with pytest.raises(ValueError, match="after 4294967293 steps the stream has none for 3"):
            ask(3)
    stream.advance(2)
    assert stream.t == 2**32 - 1


def test_pinned_memory_is_of_the_host_under_any_default_device(monkeypatch):
    """Under torch.set_default_device("cuda") it would be asked of the device, which has none."""
    made = []

    class Host:
        def to(self, device, non_blocking):
            return device

    monkeypatch.setattr(torch, "tensor", lambda *_, **options: made.append(options) or Host())
    assert ChainRNG(5).state("cuda") == torch.device("cuda")
    assert made == [{"dtype": torch.int64, "device": "cpu", "pin_memory": True}]
