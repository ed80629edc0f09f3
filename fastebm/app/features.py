"""Feature spaces that sample quality is measured in: pixels, or a small classifier of the data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastebm.app.config import ConfigError
from fastebm.app.data import Dataset

SPACES = ("pixels", "classifier")
STEPS, BATCH, LR = 800, 128, 2e-3


class Classifier(nn.Module):
    """Two convolutions and a hidden layer of 64 units, whose outputs are the features.

    Trained on the labels of the training set with a seed of its own, so that every run on one data
    set is measured in one space. It is not the Inception network: a Frechet distance in it is no
    FID, and can be compared only with others of the same data and seed.
    """

    def __init__(self, shape: tuple[int, int, int], n_classes: int, box: tuple[float, float]):
        super().__init__()
        channels, height, width = shape
        self.n_classes, self.box = n_classes, box
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        lo, hi = self.box
        return self.body(2 * (x - lo) / (hi - lo) - 1)


def train_classifier(data: Dataset, seed: int = 0) -> Classifier:
    """A classifier of pictures after 800 steps of Adam, on the CPU.

    Raises:
        ConfigError: no labels, or no pictures of 4x4 or more.
    """
    need = "features=classifier needs pictures with labels"
    if not data.is_image or min(data.event_shape[1:]) < 4:
        raise ConfigError(f"{need}, of 4x4 or more, {data.name} has none: use pixels")
    if data.labels is None:
        raise ConfigError(f"{need}, {data.name}: {data.no_labels}: use pixels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(data.event_shape, int(data.labels.max()) + 1, data.clamp)
        optimizer = torch.optim.Adam(net.parameters(), LR)
        for step in range(STEPS):
            rows = torch.randint(len(data.train), (BATCH,))
            for group in optimizer.param_groups:
                group["lr"] = LR * (1 - step / STEPS)
            optimizer.zero_grad()
            F.cross_entropy(net(data.train[rows]), data.labels[rows]).backward()
            optimizer.step()
    return net.eval()


class FeatureSpace:
    """Maps samples to features, and pictures to classes where there is a classifier.

    Args:
        name: "pixels" (the samples, flattened) or "classifier".
        data: what the classifier is trained on.
        seed: of the classifier.
    """

    def __init__(self, name: str, data: Dataset, seed: int = 0):
        if name not in SPACES:
            raise ConfigError(f"features must be one of {', '.join(SPACES)}, got {name!r}")
        self.classifier = train_classifier(data, seed) if name == "classifier" else None
        self.name = name if self.classifier is None else f"own classifier, seed {seed}"

    @torch.no_grad()
    def __call__(self, x: Tensor) -> np.ndarray:
        """(n, *event) -> (n, F) float64."""
        if self.classifier is None:
            return x.flatten(1).double().numpy()
        return torch.cat([self.classifier.features(p) for p in x.split(1000)]).double().numpy()

    @torch.no_grad()
    def classes(self, x: Tensor) -> np.ndarray:
        """(n, *event) -> (n,) the most likely class."""
        return torch.cat([self.classifier(p).argmax(1) for p in x.split(1000)]).numpy()
