"""The scikit-learn estimator: scikit-learn's own checks, pipelines, persistence, and exchange."""

import math

import numpy as np
import pytest
import torch
from torch_modes import each_mode

from fastebm import RBM

sk = pytest.importorskip("sklearn")
from scipy.sparse import csr_matrix  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.neural_network import BernoulliRBM as ScikitRBM  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from fastebm.sklearn import BernoulliRBM, from_sklearn, to_sklearn  # noqa: E402


@parametrize_with_checks([BernoulliRBM(n_components=5, n_iter=2)])
@pytest.mark.filterwarnings("ignore:X has values from")  # the checks' data are not probabilities
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def bits(n=200, d=12, dtype=np.float64, seed=0):
    """Binary rows in two kinds, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    p = np.where(np.arange(d) < d // 2, 0.9, 0.1)
    kind = rng.random((n, 1)) < 0.5
    return (rng.random((n, d)) < np.where(kind, p, 1 - p)).astype(dtype)


def digits():
    return (load_digits().data / 16 > 0.5).astype(np.float64)


def pseudo_likelihood(estimator, X):
    """The definition: each unit flipped in turn, by scikit-learn's own free energy."""
    fitted = to_sklearn(from_sklearn(estimator))
    total = np.zeros(len(X))
    for i in range(X.shape[1]):
        flipped = X.copy()
        flipped[:, i] = 1 - flipped[:, i]
        total -= np.logaddexp(0, fitted._free_energy(X) - fitted._free_energy(flipped))
    return total


def test_scores_are_the_exact_pseudo_likelihood():
    X = bits()
    model = BernoulliRBM(6, random_state=0).fit(X)
    np.testing.assert_allclose(model.score_samples(X), pseudo_likelihood(model, X), rtol=1e-9)
    assert np.array_equal(model.score_samples(X), model.score_samples(X))
    independent = -(X.mean(0) * np.log(X.mean(0)) + (1 - X.mean(0)) * np.log(1 - X.mean(0))).sum()
    assert model.score_samples(X).mean() > -independent + 2  # 3.9 of 8.3 nats are between units


def test_digits_score_at_least_as_well_as_with_scikit_learn():
    """64 hidden units, scikit-learn's settings and its update: exact pseudo-likelihood -17.76."""
    X = digits()
    options = {"learning_rate": 0.06, "batch_size": 10, "n_iter": 10, "random_state": 0}
    theirs = pseudo_likelihood(ScikitRBM(64, **options).fit(X), X).mean()
    ours = BernoulliRBM(64, **options).fit(X).score_samples(X).mean()
    assert abs(theirs + 17.76) < 0.3 and ours > theirs + 0.5
    # Without averages, and so with scikit-learn's noise, the start alone is worth something too.
    assert BernoulliRBM(64, averaging=0, **options).fit(X).score_samples(X).mean() > theirs - 0.3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exchange_with_scikit_learn(dtype):
    X = bits(dtype=dtype)
    theirs = ScikitRBM(7, n_iter=3, random_state=0).fit(X)
    rbm = from_sklearn(theirs)
    assert isinstance(rbm, RBM) and rbm.W.dtype == torch.from_numpy(X).dtype
    v = torch.from_numpy(X)
    tolerance = {"rtol": 1e-5 if dtype == np.float32 else 1e-12}
    np.testing.assert_allclose(rbm(v).detach().numpy(), theirs._free_energy(X), **tolerance)
    np.testing.assert_allclose(
        rbm.hidden_logits(v).sigmoid().detach().numpy(), theirs.transform(X), **tolerance
    )
    back = to_sklearn(rbm, random_state=1)
    assert np.array_equal(back.transform(X), theirs.transform(X))
    back.partial_fit(X)  # goes on from there, and the machine is left alone
    assert not np.array_equal(back.components_, rbm.W.detach().numpy())
    assert back.gibbs(X).shape == X.shape and np.isfinite(back.score_samples(X)).all()
    ours = BernoulliRBM(7, n_iter=3, random_state=0).fit(X)
    np.testing.assert_allclose(
        to_sklearn(from_sklearn(ours)).transform(X), ours.transform(X), **tolerance
    )
    with pytest.raises(sk.exceptions.NotFittedError):
        from_sklearn(ScikitRBM())


def test_pipeline_persistence_and_search(tmp_path):
    joblib = pytest.importorskip("joblib")
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600]
    pipeline = make_pipeline(
        MinMaxScaler(clip=True),
        BernoulliRBM(32, n_iter=20, random_state=0),
        LogisticRegression(max_iter=500),
    ).fit(X, y)
    assert pipeline.score(X, y) > 0.8
    joblib.dump(pipeline, tmp_path / "pipeline.joblib")
    again = joblib.load(tmp_path / "pipeline.joblib")
    assert np.array_equal(again.predict_proba(X), pipeline.predict_proba(X))
    names = pipeline[:-1].get_feature_names_out()
    assert names[0] == "bernoullirbm0" and len(names) == 32
    rbm, copy = pipeline[1], again[1]  # training goes on alike, chains and random state too
    X = MinMaxScaler().fit_transform(X)
    assert np.array_equal(rbm.partial_fit(X[:10]).components_, copy.partial_fit(X[:10]).components_)
    assert np.array_equal(rbm.gibbs(X), copy.gibbs(X))
    assert not hasattr(clone(rbm), "components_")


def test_batches_in_parts_are_one_fit():
    X = bits(43)
    whole = BernoulliRBM(5, batch_size=10, n_iter=1, random_state=3).fit(X)
    parts = BernoulliRBM(5, batch_size=10, n_iter=0, random_state=3).fit(X)
    for first in range(0, 43, 10):
        parts.partial_fit(X[first : first + 10])
    np.testing.assert_allclose(parts.components_, whole.components_, rtol=1e-12)
    np.testing.assert_allclose(parts.h_samples_, whole.h_samples_)
    alone = BernoulliRBM(5, random_state=3).partial_fit(X)
    assert alone.components_.shape == (5, 12)


def test_one_update_is_the_gradient_of_the_likelihood_bound():
    """Means over the data less means over the chains, times the rate."""
    X = bits(20)
    model = BernoulliRBM(5, learning_rate=0.5, batch_size=20, averaging=0, n_iter=0, random_state=3)
    before = from_sklearn(model.fit(X))
    after = from_sklearn(model.partial_fit(X))
    v = torch.from_numpy(X)
    state = model._rng.state() - torch.tensor([0, 1, 0, 0])  # before the update
    v_neg = before.sample_visible(torch.zeros(20, 5).double(), state, t=1)
    gradients = torch.autograd.grad(before(v).mean() - before(v_neg).mean(), before.parameters())
    for old, new, g in zip(before.parameters(), after.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.5 * g)


def test_sparse_and_read_only_input():
    X = bits(50, dtype=np.float32)
    options = {"n_iter": 2, "random_state": 0}
    dense = BernoulliRBM(5, **options).fit(X)
    sparse = BernoulliRBM(5, **options).fit(csr_matrix(X))
    np.testing.assert_allclose(sparse.components_, dense.components_, rtol=1e-5)
    np.testing.assert_allclose(sparse.transform(csr_matrix(X)), dense.transform(X), rtol=1e-5)
    assert dense.transform(X).dtype == dense.components_.dtype == np.float32
    X.setflags(write=False)
    assert np.array_equal(BernoulliRBM(5, **options).fit(X).components_, dense.components_)


def test_training_goes_on_in_read_only_arrays(tmp_path):
    """As joblib hands them to workers; scikit-learn's raises there."""
    joblib = pytest.importorskip("joblib")
    X = bits()
    model = BernoulliRBM(6, n_iter=2, random_state=0).fit(X)
    joblib.dump(model, tmp_path / "model")
    mapped = joblib.load(tmp_path / "model", mmap_mode="r")
    assert not mapped.components_.flags.writeable and not mapped._trained[0].flags.writeable
    for _ in range(3):
        model.partial_fit(X[:10])
        mapped.partial_fit(X[:10])
    for name in ("components_", "intercept_visible_", "intercept_hidden_", "h_samples_"):
        assert np.array_equal(getattr(model, name), getattr(mapped, name)), name


def test_training_goes_on_from_weights_set_by_hand():
    X, options = bits(20), {"n_iter": 0, "averaging": 0.5, "random_state": 1}
    W = np.random.RandomState(2).normal(size=(5, 12))

    def in_place(model):
        model.components_[:] = W

    def assigned(model):
        model.components_ = np.asfortranarray(W)
        model.components_.setflags(write=False)

    def alone(model):  # as of another program's weights
        weights = model.intercept_visible_, model.intercept_hidden_, model.n_features_in_
        for name in [name for name in vars(model) if name.endswith("_") or name[0] == "_"]:
            delattr(model, name)
        model.components_ = W.tolist()
        model.intercept_visible_, model.intercept_hidden_, model.n_features_in_ = weights

    for change in (in_place, assigned, alone):
        model = BernoulliRBM(5, **options).fit(X)
        change(model)
        model.partial_fit(X)
        # Nothing but one step from W: |gradient| <= 1 in each weight. The start was near 0.
        assert 0 < np.abs(model.components_ - W).max() <= 0.1, change
        assert 0 < np.abs(model._trained[0] - W).max() <= 0.1, change
    model.intercept_hidden_ = np.zeros(4)
    with pytest.raises(ValueError, match=r"got \(5, 12\), \(12,\) and \(4,\)"):
        model.partial_fit(X)
    del model.intercept_hidden_
    with pytest.raises(sk.exceptions.NotFittedError, match="but no intercept_hidden_"):
        model.partial_fit(X)


def test_nothing_of_torch_is_changed(monkeypatch):
    """Its threads are of the whole process, its random numbers are the caller's."""
    monkeypatch.setattr(torch, "set_num_threads", pytest.fail)
    before = torch.get_rng_state()
    model = BernoulliRBM(5, n_iter=2, random_state=0).fit(bits())
    model.transform(bits())
    model.score_samples(bits())
    model.gibbs(bits())
    from_sklearn(model)
    assert torch.equal(torch.get_rng_state(), before)


@each_mode
def test_modes_of_torch_change_nothing(mode):
    X = bits(dtype=np.float32)

    def run():
        model = BernoulliRBM(5, n_iter=2, random_state=0).fit(X)
        return [
            *(model.partial_fit(X[:10]).components_, model.h_samples_, model.transform(X)),
            *(model.score_samples(X), model.gibbs(X)),
            to_sklearn(from_sklearn(model)).components_,
        ]

    expected = run()
    with mode():
        got = run()
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(got, expected, strict=1))


def test_gibbs_draws_from_the_conditional_laws():
    X = bits(1)
    model = BernoulliRBM(4, n_iter=0, random_state=0).fit(bits())
    drawn = model.gibbs(np.repeat(X, 50_000, 0))
    p = 1 / (1 + np.exp(-model.intercept_visible_))  # weights of 0.01 move it by less than a std
    assert drawn.dtype == bool and drawn.shape == (50_000, 12)
    assert np.abs(drawn.mean(0) - p).max() < 5 * 0.5 / math.sqrt(50_000) + 0.01
    assert not np.array_equal(model.gibbs(X.repeat(9, 0)), model.gibbs(X.repeat(9, 0)))


def test_bad_input():
    X = bits()
    with pytest.warns(UserWarning, match=r"X has values from 0 to 16.*MinMaxScaler") as caught:
        BernoulliRBM(3, n_iter=0).fit(X * 16)
    assert caught[0].filename == __file__  # past scikit-learn's wrappers
    for bad in (np.nan, np.inf):
        Y = X.copy()
        Y[3, 3] = bad
        with pytest.raises(ValueError, match="NaN|infinity"):
            BernoulliRBM(3).fit(Y)
    model = BernoulliRBM(3, n_iter=1).fit(X)
    for method in (model.transform, model.score_samples, model.gibbs, model.partial_fit):
        with pytest.raises(ValueError, match="13 features, but BernoulliRBM is expecting 12"):
            method(bits(d=13))
    with pytest.raises(ValueError, match="'averaging' parameter of BernoulliRBM"):
        BernoulliRBM(averaging=1.0).fit(X)


def test_progress_is_printed(capsys):
    BernoulliRBM(3, n_iter=2, verbose=1, random_state=0).fit(bits())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("[BernoulliRBM] Iteration 2, pseudo-likelihood")
