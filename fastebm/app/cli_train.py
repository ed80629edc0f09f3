"""`fastebm train`."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from fastebm.app import checkpoints, fit, processes, report
from fastebm.app.config import MACHINES, ConfigError, TrainConfig
from fastebm.app.data import Dataset, load
from fastebm.app.presets import PRESETS
from fastebm.app.terminal import console, errors, one_line_errors, one_run
from fastebm.app.training import Trainer
from fastebm.distributed import world

DEFAULT = TrainConfig()


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="digits, gaussian, ring, 25gaussians, rings, moons, or a .npz, .npy, .pt file."
        ),
    ] = None,
    data_option: Annotated[
        str | None, typer.Option("--data", help="Another way to name DATA.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Settings to start from: {', '.join(PRESETS)}; options override them. [default:"
            " auto for vectors, where neither --loss nor --energy is given]"
        ),
    ] = None,
    loss: Annotated[
        str, typer.Option(help="cd, pcd, icd or mle; wake-sleep for helmholtz.")
    ] = DEFAULT.loss,
    seed: int = DEFAULT.seed,
    steps: Annotated[int | None, typer.Option(help="Iterations [default: 2000].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of --steps.")] = None,
    samples: Annotated[int | None, typer.Option(help="Training samples [default: all].")] = None,
    dim: Annotated[int | None, typer.Option(help="Dimension of gaussian [default: 2].")] = None,
    batch_size: Annotated[
        str, typer.Option(help="A number; auto: by the noise of the gradient (128 chains).")
    ] = str(DEFAULT.batch_size),
    lr: Annotated[float, typer.Option(help="Of Adam.")] = DEFAULT.lr,
    lr_schedule: Annotated[str, typer.Option(help="constant or cosine.")] = DEFAULT.lr_schedule,
    max_grad_norm: Annotated[float, typer.Option(help="0: no bound.")] = DEFAULT.max_grad_norm,
    k_steps: Annotated[
        int, typer.Option(help="Langevin or Gibbs steps of a chain.")
    ] = DEFAULT.k_steps,
    step_size: Annotated[
        str | None,
        typer.Option(help="A number; auto: by what is accepted. [default: from the data]"),
    ] = None,
    noise_std: Annotated[
        float | None, typer.Option(help="[default: sqrt(2 step); pictures: 0.005 of the box]")
    ] = None,
    kl_weight: float = DEFAULT.kl_weight,
    entropy_weight: float = DEFAULT.entropy_weight,
    n_entropy_refs: Annotated[
        int | None, typer.Option(help="Stored chains the entropy term looks at. [default: all]")
    ] = DEFAULT.n_entropy_refs,
    energy_reg_weight: Annotated[
        float, typer.Option(help="L2 penalty on energies.")
    ] = DEFAULT.energy_reg_weight,
    buffer_size: Annotated[
        int, typer.Option(help="Stored chains; 0: icd starts at the data.")
    ] = DEFAULT.buffer_size,
    reinit_prob: Annotated[float, typer.Option(help="Share of restarts.")] = DEFAULT.reinit_prob,
    noise_first: Annotated[
        bool, typer.Option(help="Noise, then the gradient.")
    ] = DEFAULT.noise_first,
    adjusted: Annotated[
        bool, typer.Option(help="Accept or refuse steps by Metropolis' rule.")
    ] = DEFAULT.adjusted,
    jumps: Annotated[
        int | None,
        typer.Option(help="Of the k-steps, jumps between modes. [default: adjusted: a fifth]"),
    ] = None,
    standardized: Annotated[
        bool, typer.Option(help="Steps in units of each coordinate's spread.")
    ] = DEFAULT.standardized,
    trust_region: Annotated[
        float, typer.Option(help="Bound on an update, in nats; it finds the rate. 0: none.")
    ] = DEFAULT.trust_region,
    max_lr: Annotated[float | None, typer.Option(help="Of the trust region.")] = DEFAULT.max_lr,
    energy: Annotated[
        str,
        typer.Option(
            "--energy", "--model", help="mlp, conv, resnet, rbm, gaussian-rbm or helmholtz."
        ),
    ] = DEFAULT.energy,
    scales: Annotated[
        int, typer.Option(help="Networks, each at half the resolution of the one before.")
    ] = DEFAULT.scales,
    hidden: Annotated[
        int, typer.Option(help="Width of a hidden layer; hidden units.")
    ] = DEFAULT.hidden,
    augmentation: Annotated[
        str | None, typer.Option(help="Preset of fastebm.Augmentation for stored chains, or none.")
    ] = DEFAULT.augmentation,
    adam_beta1: float = DEFAULT.adam_beta1,
    adam_beta2: float = DEFAULT.adam_beta2,
    ema: Annotated[float, typer.Option(help="Decay of averaged weights; 0: none.")] = DEFAULT.ema,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = DEFAULT.precision,
    on_divergence: Annotated[
        str, typer.Option(help="Go back and lower the step or the lr, or stop.")
    ] = DEFAULT.on_divergence,
    max_rollbacks: Annotated[int, typer.Option(help="Then give up.")] = DEFAULT.max_rollbacks,
    out: Annotated[
        Path | None, typer.Option(help="Directory [default: runs/DATA-LOSS-SEED].")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint to go on from, with its settings.")
    ] = None,
    device: str = "cpu",
    log_every: int = 10,
    checkpoint_every: int = 500,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing while it trains.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="The logged numbers, one JSON object a line.")
    ] = False,
    tensorboard: Annotated[
        bool | None, typer.Option(help="Event files [default: if installed].")
    ] = None,
) -> None:
    """Train an energy on DATA. Ctrl-C, SIGTERM and SIGHUP save a checkpoint."""
    with one_line_errors(), one_run(device) as own_device, ExitStack() as until_the_end:
        if log_every < 1 or checkpoint_every < 1:
            raise ConfigError("log_every and checkpoint_every must be at least 1")
        if resume is not None:
            _only_resumable(context)
            if not resume.is_file():
                raise ConfigError(f"{resume}: no such file")
            out = out or resume.parent
            _hold(until_the_end, out, resume=True)
            trainer = checkpoints.restore(resume, steps, own_device)
            left = trainer.config.steps - trainer.iteration
            is_over = left <= 0
            made = is_over and processes.on_rank_zero(lambda: report.is_written(trainer, out))
            if left < 0 or made:
                raise ConfigError(
                    f"{resume} is at step {trainer.iteration}, the last one: give more --steps"
                )
        else:
            config = _config(context)
            dataset = load(config.data, config.samples, config.dim, config.seed)
            config = _with_default_preset(context, config, dataset)
            trainer, is_over = Trainer(config, dataset, device=own_device), False
            c = trainer.config
            name = f"{Path(c.data).stem}-{c.loss}-{c.seed}"
            out = out or processes.on_rank_zero(lambda: _free(Path("runs") / name))
            _hold(until_the_end, out)
        if not json:
            console.print(_headline(trainer), highlight=False)
        if is_over:  # ended after its last step and before its figures
            message = f"{resume} is at its last step, {trainer.iteration}: figures and evaluation"
        else:
            message = _fit(
                trainer,
                out,
                tensorboard=fit.tensorboard_installed() if tensorboard is None else tensorboard,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                console=console,
                monitor="json" if json else "quiet" if quiet else "lines",
            )
        if not json:
            console.print(message, highlight=False, soft_wrap=True)
        try:
            report.write(trainer, out, None if json or quiet else console)
        except KeyboardInterrupt:
            errors.print(f"figures and evaluation are not made; {fit.how_to_go_on(out)}")
            raise


def _hold(until_the_end: ExitStack, out: Path, resume: bool = False) -> None:
    """Keep other runs out of the directory; rank 0 does."""
    processes.on_rank_zero(lambda: until_the_end.enter_context(fit.hold(out, resume)))


def _fit(trainer: Trainer, out: Path, **options) -> str:
    """`fit.fit` to the end of the run and a line about it; a run that did not get there ends the
    command."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        outcome = fit.fit(trainer, out, **options)
    if outcome.status == "diverged":
        errors.print(outcome.message, style="red")
        raise typer.Exit(1)
    if outcome.status == "interrupted":
        if options["monitor"] != "json":
            console.print(outcome.message, highlight=False, soft_wrap=True)
        raise typer.Exit(128 + outcome.signum)
    return outcome.message


def _config(context: typer.Context, preset: str | None = None) -> TrainConfig:
    """The settings: those of the preset, or else of the one named, and over them what the command
    line says."""
    params = context.params
    data = params["data"] if params["data_option"] is None else params["data_option"]
    if data is None:
        raise ConfigError("name the DATA to train on, or a checkpoint to --resume")
    if None not in (params["data"], params["data_option"]):
        raise ConfigError("give DATA or --data, not both")
    if params["steps"] is not None and params["epochs"] is not None:
        raise ConfigError("give --steps or --epochs, not both")
    preset = preset or params["preset"]
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    own = {f.name: params[f.name] for f in fields(TrainConfig) if _on_command_line(context, f.name)}
    for name, kind, switch in (("batch_size", int, "auto_batch"), ("step_size", float, "adaptive")):
        if name in own:
            own |= _number_or_auto(name, own.pop(name), kind, switch)
    if own.get("augmentation") == "none":
        own["augmentation"] = None
    return TrainConfig(**(PRESETS[preset] if preset else {}) | own | {"data": data})


def _with_default_preset(context: typer.Context, config: TrainConfig, data: Dataset) -> TrainConfig:
    """Of vectors, where neither a preset nor what it would decide is named, the one that needs no
    tuning."""
    named = ("preset", "loss", "energy")
    if data.is_image or any(_on_command_line(context, name) for name in named):
        return config
    return _config(context, "auto")


def _number_or_auto(name: str, text: str, kind: type, switch: str) -> dict:
    """The settings that an option of a number or "auto" stands for."""
    if text == "auto":
        return {switch: True}
    try:
        return {name: kind(text), switch: False}
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} must be {wanted} or auto, got {text!r}") from None


def _on_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _show_warning(message, *_) -> None:
    errors.print(f"warning: {message}", style="yellow")


def _only_resumable(context: typer.Context) -> None:
    """A resumed run keeps its settings: say so rather than ignore an option."""
    free = {"resume", "steps", "out", "device", "log_every", "checkpoint_every", "tensorboard"}
    free |= {"quiet", "json"}
    for name in context.params:
        if name not in free and _on_command_line(context, name):
            raise ConfigError(
                f"{name} comes from the checkpoint; with --resume give only"
                f" {', '.join(sorted(free - {'resume'}))}"
            )


def _free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that holds no run."""
    candidate, n = path, 1
    while (candidate / fit.CHECKPOINT).exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


def _headline(trainer: Trainer) -> str:
    c, n = trainer.config, len(trainer.x)
    shape = "x".join(map(str, trainer.dataset.event_shape))
    text = (
        f"{c.data}: {n} samples of {shape}; {c.energy}, {c.loss}, {c.steps} steps of"
        f" {c.batch_size} ({c.steps / trainer.batches_per_epoch:.1f} epochs)"
    )
    if world().size > 1:
        text += f", {world().size} processes"
    if c.loss != "wake-sleep":
        text += f", k = {c.k_steps}"
    if c.energy in MACHINES:
        return text
    if c.jumps:
        text += f" of them {c.jumps} jumps"
    if c.adaptive:
        found = "step size and learning rate find themselves"
        return f"{text}, {found if c.trust_region else 'step size finds itself'}"
    return (
        f"{text}, step size {c.step_size:g}, noise {trainer.sampler.coefficients(0)[1]:.3g},"
        f" effective temperature {trainer.sampler.effective_temperature:.3g}"
    )
