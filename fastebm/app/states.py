"""What a checkpoint's state must look like before anything is built or loaded from it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastebm.app.config import MOST, ConfigError
from fastebm.app.stored import brief
from fastebm.distributed.states import ROWS

ENTRIES = {
    "config": dict, "data": str, "iteration": int, "guard": list, "model": dict,
    "ema": (dict, type(None)), "optimizer": dict, "buffer": (dict, type(None)),
    "generator": Tensor, "torch_rng": Tensor, "cuda_rng": list,
}  # fmt: skip
# What the first checkpoints do not have.
LATER = {"adaptation": (dict, type(None)), "batches": int}
# Of Adam's groups, what changes its steps besides lr; the rest is how it computes.
DECIDING = ("params", "betas", "eps", "weight_decay", "amsgrad", "maximize")


def check_head(state: object) -> None:
    """ConfigError unless `state` has the entries of `Trainer.state_dict`, of their types and in
    their ranges."""
    if not isinstance(state, dict):
        raise ConfigError(f"not a fastebm checkpoint but {brief(state)}")
    missing, unknown = ENTRIES.keys() - state, state.keys() - {*ENTRIES, *LATER, "versions"}
    if missing:
        raise ConfigError(f"not a fastebm checkpoint, {', '.join(sorted(missing))} missing")
    if unknown:
        names = ", ".join(sorted(brief(name) for name in unknown)[:5])
        raise ConfigError(f"not a checkpoint of this version: what is {names}?")
    for name, kinds in ENTRIES.items():
        _expect(isinstance(state[name], kinds), name, brief(state[name]))
    for name, kinds in LATER.items():
        _expect(name not in state or isinstance(state[name], kinds), name, brief(state.get(name)))
    _expect(_is_count(state.get("batches", 0)), "batches", brief(state.get("batches")))
    _expect(_is_count(state["iteration"]), "iteration", brief(state["iteration"]))
    guard = state["guard"]
    _expect(len(guard) == 3, "guard", f"of {len(guard)} entries")
    for i, value in enumerate(guard[:2]):
        _expect(type(value) in (int, float) and 0 < value <= 1, f"guard[{i}]", brief(value))
    _expect(_is_count(guard[2]), "guard[2]", brief(guard[2]))


def check_state(state: dict, own: dict, parameters: list[Tensor]) -> None:
    """ConfigError unless `state`, with a head as above, fits the run that is to load it.

    Args:
        own: the `Trainer.state_dict` of that run.
        parameters: what its optimiser changes.
    """
    for name in ("model", "ema", "generator", "torch_rng"):
        check_form(state[name], own[name], name)
    for name in ("generator", "torch_rng"):
        try:
            torch.Generator().set_state(state[name].cpu())
        except RuntimeError:
            raise ConfigError(f"{name} is no state of a random generator") from None
    for i, rng in enumerate(state["cuda_rng"]):
        check_form(rng, torch.empty(16, dtype=torch.uint8), f"cuda_rng[{i}]")
    if own["ema"] is not None:
        n = int(state["ema"]["n_averaged"])
        _expect(n == state["iteration"], "ema.n_averaged", f"{n} at step {state['iteration']}")
    _check_adaptation(state, own)
    _check_buffer(state["buffer"], own["buffer"])
    _check_optimizer(state["optimizer"], own["optimizer"], parameters, state["iteration"])


def check_form(found: object, wanted: Tensor | Mapping | None, name: str) -> None:
    """ConfigError unless `found` is a tensor of the shape and dtype of `wanted`, of finite numbers,
    or a dictionary of such under its keys. The extra state of a module is left to that module.

    A tensor that repeats its values, and so is larger than what is stored of it, is refused: sizes
    of a file count for what it holds.
    """
    if isinstance(wanted, Tensor):
        _check_tensor(found, wanted, name)
    elif isinstance(wanted, Mapping):
        _expect(isinstance(found, dict), name, brief(found))
        keys = {k for k in wanted if not str(k).endswith("_extra_state")}
        _check_keys({k for k in found if not str(k).endswith("_extra_state")}, keys, name)
        for key in keys:
            check_form(found[key], wanted[key], f"{name}.{key}")
    else:
        _expect(found is wanted, name, brief(found))


def _check_adaptation(state: dict, own: dict) -> None:
    """What adapts in a run, of its form and range."""
    found = state.get("adaptation")
    _check_numbers(found, own["adaptation"], "adaptation")
    if found is None:
        return
    _expect("batches" in state, "batches", "missing")
    rule, trust = found.get("batch_rule"), found.get("trust_region")
    if rule is not None:
        fits = rule["multiple"] in (1, 2, 4, 8) and rule["multiple"] <= own["config"]["k_steps"]
        fits = fits and abs(rule["average"]) < 1.01  # of cosines, which are rounded
        _expect(fits, "adaptation.batch_rule", brief(rule))
    if trust is not None:
        n = trust["n_backtracks"]
        _expect(_is_count(n), "adaptation.trust_region.n_backtracks", brief(n))


def _check_numbers(found: object, wanted: Mapping | float | None, name: str) -> None:
    """ConfigError unless `found` is a number, a whole one where `wanted` is, or a dictionary of
    such under its keys."""
    if isinstance(wanted, Mapping):
        _expect(isinstance(found, dict), name, brief(found))
        _check_keys(found.keys(), wanted.keys(), name)
        for key in wanted:
            _check_numbers(found[key], wanted[key], f"{name}.{key}")
    elif wanted is None:
        _expect(found is None, name, brief(found))
    else:
        ok = type(found) is type(wanted) and math.isfinite(found)
        _expect(ok, name, brief(found))


def _check_keys(found: set, wanted: set, name: str) -> None:
    for key in sorted(found ^ wanted, key=str):
        trouble = "is missing" if key in wanted else "is unknown"
        raise ConfigError(f"{name} does not fit the run: {brief(key)} {trouble}")


def _check_tensor(found: object, wanted: Tensor, name: str) -> None:
    dense = isinstance(found, Tensor) and not found.is_meta and not found.is_nested
    _expect(dense and found.layout == wanted.layout and not found.is_quantized, name, _kind(found))
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise ConfigError(f"{name} does not fit the run: {brief(found)}, expected {brief(wanted)}")
    if found.layout == torch.strided:
        stored = found.untyped_storage().nbytes()
        _expect(found.numel() * found.element_size() <= stored, name, f"stored in {stored} bytes")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise ConfigError(f"{name} has {int((~found.isfinite()).sum())} values that are not finite")


def _check_buffer(found: dict | None, own: dict | None) -> None:
    """Sizes and ranges; the rest is for the buffer itself to say. Of several ranks `own` is a part,
    and `found` that part or the whole."""
    if own is None or found is None:
        check_form(found, own, "buffer")
        return
    _check_keys(found.keys(), own.keys(), "buffer")
    extra, part = found["_extra_state"], own["_extra_state"].get("shard")
    _expect(isinstance(extra, dict), "buffer._extra_state", brief(extra))
    is_whole = part is not None and "shard" not in extra
    _expect(is_whole or extra.get("shard") == part, "buffer.shard", f"other than {part}")
    for name, wanted in own.items():
        if is_whole and name in ROWS:
            rows = part[1] * len(wanted)
            wanted = torch.empty((rows, *wanted.shape[1:]), dtype=wanted.dtype, device="meta")
        if isinstance(wanted, Tensor):
            check_form(found[name], wanted, f"buffer.{name}")
    _, t, offset, zero = found["stream"].tolist()
    ok = 0 <= t < 2**32 and 0 <= offset < 2**56 and zero == 0  # as ChainRNG has them
    _expect(ok, "buffer.stream", f"at step {t} of sample {offset}, {zero}")
    _expect(int(found["visits"].min()) >= 0, "buffer.visits", "negative")
    mode, n = extra.get("mode"), extra.get("n_pushed")
    _expect(isinstance(mode, str), "buffer.mode", brief(mode))
    _expect(_is_count(n, 2**63), "buffer.n_pushed", brief(n))
    ours = own["_extra_state"]["value_range"]
    theirs = extra.get("value_range", ours)  # which the first checkpoints do not have
    _expect(_numbers(theirs) == list(ours), "buffer.value_range", f"other than {ours}")


def _check_optimizer(found: dict, own: dict, parameters: list[Tensor], iteration: int) -> None:
    """Adam's groups as the run has them, and moments of the forms that its parameters have: torch
    does not look, and its fused kernel writes them."""
    _check_keys(found.keys(), own.keys(), "optimizer")
    groups, moments = found["param_groups"], found["state"]
    _expect(isinstance(groups, list) and len(groups) == 1, "optimizer.param_groups", brief(groups))
    _expect(isinstance(groups[0], dict), "optimizer.param_groups[0]", brief(groups[0]))
    for key in DECIDING:
        theirs, ours = (_numbers(g.get(key)) for g in (groups[0], own["param_groups"][0]))
        _expect(theirs == ours, f"optimizer.{key}", "what the settings do not say")
    lr = groups[0].get("lr")
    _expect(type(lr) in (int, float) and 0 <= lr < math.inf, "optimizer.lr", brief(lr))
    _expect(isinstance(moments, dict), "optimizer.state", brief(moments))
    steps = [0.0]
    for i, entry in moments.items():
        _expect(type(i) is int and 0 <= i < len(parameters), "optimizer.state", f"of {brief(i)}")
        p, name = parameters[i], f"optimizer.state[{i}]"
        wanted = {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p}
        check_form(entry, wanted, name)
        steps.append(float(entry["step"]))
        _expect(steps[-1] >= 1, f"{name}.step", f"{steps[-1]:g}")
        _expect(bool((entry["exp_avg_sq"] >= 0).all()), f"{name}.exp_avg_sq", "negative")
    # In float32, where one more than 2^24 is 2^24.
    at = f"of step {max(steps):g} at step {iteration}"
    _expect(max(steps) == min(iteration, 2**24), "optimizer.state", at)


def _is_count(value: object, end: int = MOST) -> bool:
    return type(value) is int and 0 <= value < end


def _numbers(value: object) -> list | None:
    """A number or a sequence of them as a list."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values if all(isinstance(v, (bool, int, float)) for v in values) else None


def _expect(ok: bool, name: str, got: str) -> None:
    if not ok:
        raise ConfigError(f"{name} cannot be {got}")


def _kind(value: object) -> str:
    """Of a tensor that is not the dense one expected."""
    return f"{brief(value)}, not dense" if isinstance(value, Tensor) else brief(value)
