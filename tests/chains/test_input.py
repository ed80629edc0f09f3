"""What a model may do with the x that a chain gives it: hang hooks on it, return parts of it, keep
what it knows of it by its version."""

import torch

from fastebm import LangevinDynamics

START = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def chain(model, n_steps=3, **options):
    return LangevinDynamics(model, 0.1, noise_std=0.0).sample(START, n_steps, **options)


def test_a_hook_on_x_is_of_one_step():
    def halved(x):
        x.register_hook(lambda grad: 0.5 * grad)
        return x.sum(1)

    path = chain(halved, return_trajectory=True)
    for k in range(3):
        torch.testing.assert_close(path[:, k], START - 0.05 * (k + 1))


class _Passed(torch.autograd.Function):
    """x^2 / 2 with a gradient that is its input itself, not a copy."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(1) / 2

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0].view_as(ctx.saved_tensors[0])


def test_energies_and_gradients_in_the_memory_of_x_are_logged_as_they_were():
    path, logged = chain(lambda x: x[:, 0], return_trajectory=True, return_diagnostics=True)
    at = torch.cat([START[:, None], path[:, :-1]], 1)  # where each step started
    assert torch.equal(logged["energy"].T, at[:, :, 0])
    path, logged = chain(_Passed.apply, return_trajectory=True, return_diagnostics=True)
    torch.testing.assert_close(path[:, -1], 0.9**3 * START)
    at = torch.cat([START[:, None], path[:, :-1]], 1)
    torch.testing.assert_close(logged["grad_norm"].T, at.norm(dim=2))


def test_scales_in_the_memory_of_x_are_logged_as_they_were():
    path, logged = chain(lambda x: x, return_trajectory=True, return_diagnostics=True)
    at = torch.cat([START[:, None], path[:, :-1]], 1)
    torch.testing.assert_close(logged["energy"].T, at.sum(2))


def test_what_a_model_remembers_by_version_is_of_the_step():
    known = {}

    def remembering(x):
        key = id(x), x._version
        if key not in known:
            known[key] = (x.detach().square() / 2).sum(1), x.detach().clone()
        e, grad = known[key]
        return e + (grad * (x - x.detach())).sum(1)

    result = chain(remembering, 5)
    torch.testing.assert_close(result, 0.9**5 * START)
