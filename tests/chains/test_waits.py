"""What would wait for a device is found, and nothing else."""

import pytest
import torch

from fastebm.chains.waits import NoWaits

X, MASK = torch.arange(6.0).view(3, 2), torch.tensor([True, False, True])
WAITS = {
    "a number": lambda x: x.sum().item(),
    "a branch": lambda x: bool(x.sum() > 0),
    "rows by a mask": lambda x: x[MASK],
    "nonzero": lambda x: x.nonzero(),
    "elements by a mask": lambda x: x.masked_select(x > 1),
    "distinct values": lambda x: x.unique(),
    "repeated rows": lambda x: x.repeat_interleave(torch.tensor([1, 0, 2]), 0),
    "equality": lambda x: torch.equal(x, x),
    "rows put by a mask": lambda x: x.clone().index_put_((MASK,), torch.ones(2, 2)),
    "a copy to another device": lambda x: x.to("meta"),
    "a copy into another device's memory": lambda x: torch.empty(3, 2, device="meta").copy_(x),
}
DOES_NOT = {
    "rows by number": lambda x: x[torch.tensor([2, 0])],
    "a number put by a mask": lambda x: x.clone().index_put_((MASK,), torch.tensor(0.0)),
    "a choice": lambda x: torch.where(x > 1, x, -x),
    "a copy that nobody waits for": lambda x: x.to("meta", non_blocking=True),
    "a copy here": lambda x: x.to(torch.float64, copy=True),
    "sorting": lambda x: x.sort(0),
}


@pytest.mark.parametrize("call", WAITS.values(), ids=WAITS)
def test_what_waits(call):
    with NoWaits(X.device), pytest.raises(RuntimeError, match="waits for the device"):
        call(X)


@pytest.mark.parametrize("call", DOES_NOT.values(), ids=DOES_NOT)
def test_what_does_not(call):
    with NoWaits(X.device):
        call(X)


def test_reading_another_device_is_no_wait():
    with NoWaits(torch.device("meta")):
        assert X.sum().item() == 15
        with pytest.raises(RuntimeError, match="waits"):
            X.to("meta")
