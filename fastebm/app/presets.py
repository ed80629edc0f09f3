"""Settings to start from, by kind of data: `fastebm train FILE --preset NAME`.

Each entry says where its figures are from. [code]: the script of Du et al. 2021 (ICD), as its
default or in its README. [tutorial]: the UvA deep learning tutorial 8 on MNIST. [measured]: our own
runs, in bench/results or in `make demo`. Step size and noise are in units of a box [0, 1].
"""

from __future__ import annotations

# The ring of `make demo` [measured]: of CD, CD + L2, ICD and ICD + L2, the last has the best
# density and survives the largest steps. The step size follows from the data, at temperature 1.
_VECTORS = {
    "loss": "icd",
    "batch_size": 128,
    "lr": 0.01,
    "k_steps": 20,
    "kl_weight": 1.0,  # [code]
    "entropy_weight": 0.3,  # [code], a heuristic there
    "energy_reg_weight": 0.1,  # [measured]; [code] has 1
    "buffer_size": 2000,
    "reinit_prob": 0.05,  # [code] of 2020 and Du and Mordatch 2019
    "hidden": 64,
}

# Vectors of any scale, with nothing to tune [measured: python -m bench --only auto].
_AUTO = {
    "loss": "pcd",
    "batch_size": 128,
    "auto_batch": True,
    "lr": 0.01,
    "trust_region": 0.2,
    "max_lr": 0.03,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "k_steps": 20,
    "adjusted": True,
    "adaptive": True,
    "standardized": True,
    "energy_reg_weight": 0.001,
    "buffer_size": 2000,
    "reinit_prob": 0.01,
    "hidden": 64,
    "ema": 0.99,
}

# The digits of `make demo` [measured].
_DIGITS = _VECTORS | {
    "lr": 1e-3,
    "step_size": 0.25,
    "noise_std": 0.005,
    "hidden": 128,
    "ema": 0.99,  # [code]
}

# No recipe is in [code] for MNIST. Step size 10 and noise 0.005 on [-1, 1], restart 5 % and L2 0.1
# are of [tutorial], the other weights of [code]. Width and K are for minutes on a CPU; on a GPU
# take --hidden 32 --k-steps 60 ([tutorial]: K = 60).
_MNIST = {
    "loss": "icd",
    "steps": 2000,  # [measured]; the digits are there after 500
    "energy": "conv",
    "hidden": 16,
    "batch_size": 128,
    "lr": 1e-3,
    "lr_schedule": "cosine",
    "max_grad_norm": 1.0,
    "k_steps": 20,
    "step_size": 2.5,
    "noise_std": 0.0025,
    "kl_weight": 1.0,
    "entropy_weight": 0.3,
    "energy_reg_weight": 0.1,
    "buffer_size": 10_000,
    "reinit_prob": 0.05,
    "augmentation": "mnist",
    "ema": 0.99,
}

# All of [code], but that chains go back to their slot of the buffer rather than into a reservoir.
_CIFAR10 = {
    "loss": "icd",
    "energy": "resnet",
    "scales": 3,
    "steps": 20_000,  # its author's advice: 10 000 to 20 000
    "batch_size": 128,
    "lr": 2e-4,
    "lr_schedule": "constant",
    "adam_beta2": 0.9,
    "max_grad_norm": 0.5,
    "k_steps": 40,
    "step_size": 100.0,
    "noise_std": 0.001,
    "noise_first": True,
    "kl_weight": 1.0,
    "entropy_weight": 0.3,
    "n_entropy_refs": 100,
    "energy_reg_weight": 1.0,
    "buffer_size": 10_000,
    "reinit_prob": 0.001,
    "augmentation": "cifar10",
    "ema": 0.99,
}

# Persistent chains as Tieleman 2008 runs them: as many as a batch, one step an update, none thrown
# away. Adam's rate [measured]: MNIST, 5 epochs, test log-likelihood by AIS -93.6 +- 0.8 nats; with
# 0.004 -95.2 +- 0.4.
_RBM = {
    "energy": "rbm",
    "loss": "pcd",
    "hidden": 500,
    "batch_size": 100,
    "lr": 8e-3,
    "lr_schedule": "cosine",
    "max_grad_norm": 0.0,
    "k_steps": 1,
    "buffer_size": 100,
    "reinit_prob": 0.0,
}

# [measured] on the digits: 0.005 is slower, 0.02 as good.
_HELMHOLTZ = {
    "energy": "helmholtz",
    "loss": "wake-sleep",
    "hidden": 200,
    "batch_size": 100,
    "lr": 0.01,
    "lr_schedule": "cosine",
    "max_grad_norm": 0.0,
}

PRESETS: dict[str, dict] = {
    "auto": _AUTO,
    "2d": _VECTORS,
    "digits": _DIGITS,
    "mnist": _MNIST,
    "cifar10": _CIFAR10,
    "rbm": _RBM,
    "helmholtz": _HELMHOLTZ,
}
