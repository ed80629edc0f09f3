"""A whole training step as one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastebm.caller import warn
from fastebm.chains.capture import Body, capture, ordered, warm_up
from fastebm.chains.graph import GraphWarning
from fastebm.chains.settings import settings_key
from fastebm.chains.snapshot import Snapshot
from fastebm.chains.waits import Reads
from fastebm.distributed.gradients import average_gradients
from fastebm.losses.contrastive import ContrastiveDivergence
from fastebm.losses.output import LossOutput
from fastebm.rng import ChainRNG, DeviceRNG

WARM_UP_STEPS = 3  # the optimiser makes its state in the first; libraries choose in all


class GraphedTrainStep:
    """Draw, chains, loss, backward pass, optimiser and push, captured as one CUDA graph: what a
    step of a small energy spends on launches goes, and the host is free.

    Every call is one training step. The first three run eagerly, the fourth is captured, and from
    then on the graph is replayed; the numbers are those of eager steps with the same seed. Nothing
    waits for the device, so non-finite energies and chains are counted, not raised: look at
    ``metrics["n_nonfinite"]`` where you log.

    A graph bakes numbers in. All that loss, sampler, buffer, model and optimiser hold is looked at
    in every call: where something is not what was captured (a weight of the loss, a learning rate,
    a tensor that a checkpoint replaced), that step runs eagerly and the next is captured anew,
    which a ``GraphWarning`` says once. What is to change often must be a tensor, changed in place.

    In a process group the gradients are averaged over the ranks, in the graph: the loss's model is
    your module itself, in no DistributedDataParallel.

    Args:
        loss: a loss with ``on_nonfinite="count"``, its model on a CUDA device. A buffer must be of
            mode ``"slot"``, its initial samples ``"uniform"`` or ``"normal"``.
        optimizer: with ``capturable=True``, where it has that option.
        seed: of the chains' noise: an int, or a ``ChainRNG``, which is not advanced (``rng`` is).
        max_grad_norm: bound on the norm of the gradient in all parameters; None: none.

    Attributes:
        rng: the chains' stream; ``rng.host()`` for a checkpoint.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
    """

    def __init__(
        self,
        loss: ContrastiveDivergence,
        optimizer: Optimizer,
        seed: int | ChainRNG = 0,
        max_grad_norm: float | None = None,
    ) -> None:
        self._device = _check(loss, optimizer)
        self.loss, self.optimizer, self.max_grad_norm = loss, optimizer, max_grad_norm
        self.rng = DeviceRNG(seed if isinstance(seed, ChainRNG) else ChainRNG(seed), self._device)
        self._x: Tensor | None = None
        self._out: LossOutput | None = None
        self._replay: Body | None = None
        self._settings: object = None
        self._state: Snapshot | None = None  # what was captured, or is to be
        self._rewritten: frozenset[str] = frozenset()  # tensors that each step replaces
        self._calls, self._has_warned = 0, False

    def __call__(self, x: Tensor) -> LossOutput:
        """One step on the data ``x`` (B, *event), of the same shape and dtype in every call.

        Returns:
            The loss, the chains' ends and the metrics, without graphs. Where the step was replayed
            the next call overwrites them.

        Raises:
            ValueError: ``x`` has another shape, dtype or device than before; or the loss has become
                one that cannot be captured.
            RuntimeError: the step cannot be captured, and why; or gradients are off.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "a training step needs gradients: call it outside of torch.no_grad() and"
                " torch.inference_mode()"
            )
        with ordered(self._device):
            if self._x is None:
                self._x = x.detach().to(self._device, copy=True)
            elif x.shape != self._x.shape or x.dtype != self._x.dtype:
                raise ValueError(
                    f"x must be {self._x.dtype} {tuple(self._x.shape)} as at first, got {x.dtype}"
                    f" {tuple(x.shape)}"
                )
            else:
                self._x.copy_(x, non_blocking=True)
            self._calls += 1
            if self._calls <= WARM_UP_STEPS:
                warm_up(self._step, self._device, may_wait=self._calls == 1)
            elif self._has_changed():
                self._replay = None
                _check(self.loss, self.optimizer)
                warm_up(self._step, self._device, may_wait=True)
            elif self._replay is None:
                self._capture()
                self._replay()
            else:
                self.loss.calls += 1  # what the step counts on the host
                if self.loss.buffer is not None:
                    self.loss.buffer.count(self.loss.n_chains or len(x))
                self._replay()
            return self._out

    def _capture(self) -> None:
        _check(self.loss, self.optimizer)
        before = self._look()
        with Reads() as reads:
            replay = capture(self._step, self._device, share_memory=False)
        after = self._look()
        replaced = after.replaced(before)
        written_first = [name for name, tensor in replaced.items() if not reads.saw(tensor)]
        change = after.difference(before, written_first)
        if change is not None:
            raise RuntimeError(f"the step cannot be captured, it changes what it reads, {change}")
        self._rewritten |= set(written_first)
        self._state, self._replay = self._look(), replay

    def _has_changed(self) -> bool:
        """Whether a graph, or the one to be captured, would not be the step as it is now."""
        settings, state = settings_key(self._device), self._look()
        if state.unseen is not None:
            raise RuntimeError(f"the step cannot be captured: {state.unseen}")
        before, self._state = self._state, state
        change = None if before is None else state.difference(before)
        if change is None and before is not None and settings != self._settings:
            change = "settings of torch"
        self._settings = settings
        if change is not None and not self._has_warned:
            self._has_warned = True
            text = f"the step runs eagerly once and is captured anew, since it changed: {change}"
            warn(text, GraphWarning)
        return change is not None

    def _look(self) -> Snapshot:
        """What a replay would go on using."""
        return Snapshot(
            self._device,
            self._rewritten,
            loss=self.loss,
            param_groups=self.optimizer.param_groups,
            optimizer_state=list(self.optimizer.state.values()),
            max_grad_norm=self.max_grad_norm,
        )

    def _step(self) -> None:
        self._out = train_step(self.loss, self.optimizer, self._x, self.rng, self.max_grad_norm)


def train_step(
    loss: ContrastiveDivergence,
    optimizer: Optimizer,
    x: Tensor,
    rng: DeviceRNG,
    max_grad_norm: float | None = None,
) -> LossOutput:
    """The step that is captured; waits for nothing. Arguments as in ``GraphedTrainStep``."""
    optimizer.zero_grad(set_to_none=True)
    out = loss(x, seed=rng)
    out.loss.backward()
    average_gradients(loss.model.parameters())
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(loss.model.parameters(), max_grad_norm)
    optimizer.step()
    return out._replace(loss=out.loss.detach())


def _check(loss: ContrastiveDivergence, optimizer: Optimizer) -> torch.device:
    """The device; raises where the step cannot be captured."""
    if not isinstance(loss, ContrastiveDivergence):
        raise TypeError(f"loss must be a loss of fastebm, got {type(loss).__name__}")
    if not isinstance(loss.model, nn.Module):
        raise TypeError(f"the loss's model must be an nn.Module, got {type(loss.model).__name__}")
    if loss.on_nonfinite != "count":
        raise ValueError(f'loss must have on_nonfinite="count", got {loss.on_nonfinite!r}')
    buffer = loss.buffer
    if buffer is not None and buffer.mode != "slot":
        raise ValueError(f'the buffer must be of mode "slot", got {buffer.mode!r}')
    if buffer is not None and not isinstance(buffer.init, str):
        raise ValueError('the buffer must start at "uniform" or "normal" samples, got a function')
    device = next((p.device for p in loss.model.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        raise ValueError(f"GraphedTrainStep needs a model on a CUDA device, it is on {device}")
    if not all(group.get("capturable", True) for group in optimizer.param_groups):
        raise ValueError("optimizer must be made with capturable=True")
    return device
