"""Sample quality: distances against closed forms, the classifier, and what `evaluate` compares."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastebm.app import evaluation, features, quality
from fastebm.app.config import ConfigError, TrainConfig
from fastebm.app.data import load
from fastebm.app.features import FeatureSpace, train_classifier
from fastebm.app.training import Trainer

RNG = np.random.default_rng(0)


def test_frechet_distance_of_gaussians():
    # Exact for the empirical moments: make them so. Commuting covariances: sum (s_a - s_b)^2.
    z = RNG.standard_normal((500, 3))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    s, t, shift = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 0.0]), np.array([1.0, -2.0, 0.0])
    turn = np.linalg.qr(RNG.standard_normal((3, 3)))[0]
    found = evaluation.frechet_distance(z * s @ turn, (z * t + shift) @ turn)
    # A constant feature does not make NaN; its eigenvalue of 0 comes out within eps times the
    # largest product of variances, and enters by its root.
    root_of_zero = (np.finfo(float).eps * (s.max() * t.max()) ** 2) ** 0.5
    assert found == pytest.approx(5 + 4 + 2.25, abs=4 * root_of_zero)
    assert evaluation.frechet_distance(z, z) == pytest.approx(0, abs=1e-9)
    # covariances that do not commute, against scipy's matrix root
    from scipy.linalg import sqrtm

    a, b = z @ np.diag([1.0, 2, 3]), z @ RNG.standard_normal((3, 3))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    wanted = np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert evaluation.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)


def test_kernel_distance_by_hand_and_unbiased():
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0]])
    # k(0, .) = 1, k(1, 2) = 27: within a: 1, within b: 1, across: (1 + 1 + 27 + 1) / 4
    assert evaluation.kernel_distance(a, b) == pytest.approx(1 + 1 - 2 * 30 / 4)
    same = [evaluation.kernel_distance(*RNG.standard_normal((2, 100, 4))) for _ in range(60)]
    assert min(same) < 0 and abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(60)


def test_sliced_wasserstein_of_a_shift():
    z = RNG.standard_normal((2000, 2))
    # a shift by d costs |d cos(angle)|, on average d * 2 / pi
    assert evaluation.sliced_wasserstein(z, z + [3.0, 0.0], 4000) == pytest.approx(6 / np.pi, 0.03)


def test_class_entropy():
    assert evaluation.class_entropy(np.arange(8) % 4, 4) == pytest.approx(math.log(4))
    assert evaluation.class_entropy(np.zeros(8, int), 4) == 0


def test_classifier_is_the_same_each_time(monkeypatch):
    monkeypatch.setattr(features, "STEPS", 5)
    digits = load("digits")
    torch.manual_seed(1)
    space = FeatureSpace("classifier", digits)
    torch.manual_seed(2)
    assert np.array_equal(FeatureSpace("classifier", digits)(digits.test), space(digits.test))


def test_classifier_is_good_and_sees_missing_classes(monkeypatch):
    monkeypatch.setattr(features, "STEPS", 200)
    digits = load("digits")
    space = FeatureSpace("classifier", digits)
    from sklearn.datasets import load_digits

    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    labels = load_digits().target[order[: len(digits.test)].numpy()]  # of the test part
    assert (space.classes(digits.test) == labels).mean() > 0.95
    assert space(digits.test).shape == (len(digits.test), 64)
    few = digits.train[digits.labels < 5][:359]
    real, other = digits.test, digits.train[:359]
    found, floor = (quality.sample_measures(x, real, digits, space) for x in (few, other))
    assert found["frechet"] > 5 * floor["frechet"] and found["kid"] > 5 * abs(floor["kid"])
    assert found["recall"] < 0.8 < floor["recall"]
    assert found["class_entropy"] < math.log(5) + 0.1 < floor["class_entropy"]


def test_no_classifier_without_labels():
    with pytest.raises(ConfigError, match="needs pictures with labels"):
        train_classifier(load("ring", 100))
    with pytest.raises(ConfigError, match="features must be one of pixels, classifier"):
        FeatureSpace("inception", load("ring", 100))


def test_evaluate_compares_what_it_says(tmp_path):
    config = TrainConfig(
        data="ring", samples=400, batch_size=32, k_steps=2, buffer_size=300, hidden=8, seed=1
    )
    trainer = Trainer(config)
    result = quality.run(trainer, 200, 5, "pixels", 1, tmp_path / "q.json")
    short, long, buffer, floor = result["samples"].values()
    assert list(result["samples"]) == ["short (2 steps)", "long (5 steps)", "buffer", "real"]
    assert floor["modes"] == 8 and floor["precision"] > 0.85 > short["precision"]
    for name in ("frechet", "kid", "sliced_w", "mmd2"):
        assert all(v[name] > 2 * abs(floor[name]) for v in (short, long, buffer)), name
    assert set(result["density"]) == {"kl", "tv"}
    assert json.loads((tmp_path / "q.json").read_text())["samples"]["real"] == floor
    cd = Trainer(replace(config, loss="cd"))
    assert "buffer" not in quality.sample_sets(cd, 100, 3)


def test_samples_that_are_not_finite():
    ring = load("ring", 100)
    bad = torch.full((50, 2), math.nan)
    found = quality.sample_measures(bad, ring.test[:50], ring, FeatureSpace("pixels", ring))
    assert found["frechet"] == found["sliced_w"] == found["mmd2"] == math.inf
    assert found["modes"] == 0 and "precision" not in found
