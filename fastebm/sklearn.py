"""A restricted Boltzmann machine as a scikit-learn estimator, and exchange with scikit-learn's.

from fastebm.sklearn import BernoulliRBM
Pipeline([("rbm", BernoulliRBM(n_components=100)), ("classes", LogisticRegression())])
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fastebm.caller import warn
from fastebm.energies import RBM
from fastebm.modes import full_precision
from fastebm.ops.bernoulli import bernoulli_sigmoid, bernoulli_sigmoid_
from fastebm.rng import HIDDEN, VISIBLE, ChainRNG

try:
    from scipy.sparse import issparse
    from sklearn import neural_network
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        TransformerMixin,
        _fit_context,
    )
    from sklearn.utils import check_random_state, gen_batches
    from sklearn.utils._param_validation import Interval
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as missing:
    raise ImportError(f'{missing.name} is needed here: pip install "fastebm[app]"') from None

__all__ = ["BernoulliRBM", "from_sklearn", "to_sklearn"]

_WEIGHTS = ("components_", "intercept_visible_", "intercept_hidden_")  # W, b, c
_CPU = torch.device("cpu")


class BernoulliRBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Binary RBM trained by persistent contrastive divergence, as scikit-learn's ``BernoulliRBM``.

    Parameters, attributes and methods are those of ``sklearn.neural_network.BernoulliRBM``, whose
    update this is, with three differences. Visible biases start at the logits of the means of the
    data (Hinton 2010, 8.1), not at 0. The fitted weights are moving averages of those that are
    trained, which takes out most of the noise of so few chains. And ``score_samples`` is the exact
    pseudo-likelihood, over all units, where scikit-learn flips one unit chosen at random.

    Parameters:
        n_components: hidden units.
        learning_rate, batch_size, n_iter: of the updates; batches are taken in the order of X.
            There are as many persistent chains as samples in a batch.
        averaging: in [0, 1): decay of the averages, 0: none.
        verbose: print the mean pseudo-likelihood after each iteration.
        random_state: an int, a RandomState or None.

    Attributes:
        components_: (n_components, n_features), W of ``fastebm.RBM``.
        intercept_hidden_: (n_components,), its c.
        intercept_visible_: (n_features,), its b.
        h_samples_: (batch_size, n_components), hidden units of the chains.
        n_features_in_: as in all estimators, and ``feature_names_in_``.

    X holds values in [0, 1]; others are worth a warning. It may be sparse. Arithmetic is float32
    for float32, else float64. Weights may be set by hand: ``partial_fit`` goes on from what they
    are. Arrays that are read-only are replaced by copies.

    Source: Tieleman, Training restricted Boltzmann machines using approximations to the likelihood
    gradient, 2008.
    """

    _averaged = ()  # the weights as the last update left them

    _parameter_constraints = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "n_iter": [Interval(Integral, 0, None, closed="left")],
        "averaging": [Interval(Real, 0, 1, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components=256,
        *,
        learning_rate=0.1,
        batch_size=10,
        n_iter=10,
        averaging=0.99,
        verbose=0,
        random_state=None,
    ):
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.averaging = averaging
        self.verbose = verbose
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Train on X (n_samples, n_features) from the start; ``y`` is not used."""
        X = self._validated(X, reset=True)
        self._start(X)
        batches = [X[part] for part in gen_batches(X.shape[0], self.batch_size)]
        if not issparse(X):  # a view each, made once
            batches = [_tensor(batch) for batch in batches]
        for iteration in range(1, self.n_iter + 1):
            begin = time.perf_counter()
            self._update(map(_tensor, batches))
            if self.verbose:
                score, seconds = self.score_samples(X).mean(), time.perf_counter() - begin
                print(
                    f"[BernoulliRBM] Iteration {iteration}, pseudo-likelihood = {score:.2f},"
                    f" time = {seconds:.2f}s"
                )
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """One update with X as the batch, from the weights that are there, or from the start."""
        first = not any(hasattr(self, name) for name in _WEIGHTS)
        X = self._validated(X, reset=first)
        if first:
            self._start(X)
        self._update([_tensor(X)])
        return self

    def transform(self, X):
        """p(h = 1 | v), (n_samples, n_components)."""
        v = self._visible(X)
        with torch.no_grad(), full_precision(_CPU):
            return from_sklearn(self).hidden_logits(v).sigmoid_().numpy()

    def score_samples(self, X):
        """Exact log pseudo-likelihoods ``sum_i log p(v_i | v_-i)``, (n_samples,)."""
        v = self._visible(X)
        with torch.no_grad(), full_precision(_CPU):
            return logsigmoid(from_sklearn(self).flip_energies(v)).sum(1).numpy()

    def gibbs(self, v):
        """One step of block Gibbs sampling from v (n_samples, n_features): a bool array."""
        v = self._visible(v)
        return from_sklearn(self).gibbs_step(v, self._seed())[0].numpy().astype(bool)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self):
        return self.components_.shape[0]

    def _validated(self, X, reset: bool):
        X = self._checked(X, reset)
        low, high = X.min(), X.max()
        if low < 0 or high > 1:
            warn(
                f"X has values from {low:g} to {high:g}, and the units of a BernoulliRBM take"
                " values in [0, 1]: scale X first, for example by MinMaxScaler"
            )
        return X

    def _checked(self, X, reset: bool):
        types = (np.float64, np.float32)
        return validate_data(self, X, accept_sparse="csr", dtype=types, order="C", reset=reset)

    def _visible(self, X) -> Tensor:
        check_is_fitted(self)
        return _tensor(self._checked(X, reset=False).astype(_dtype(self), copy=False))

    def _seed(self) -> int:
        return int(self.random_state_.randint(np.iinfo(np.int32).max))

    def _start(self, X) -> None:
        self.random_state_ = check_random_state(self.random_state)
        mean = (np.asarray(X.sum(0)).ravel() + 1) / (X.shape[0] + 2)  # as RBM.fit_visible
        weights = self.random_state_.normal(0, 0.01, (self.n_components, X.shape[1]))
        self.components_ = weights.astype(X.dtype)
        mean = mean.clip(1e-6, 1 - 1e-6)  # of data outside [0, 1]
        self.intercept_visible_ = np.log(mean / (1 - mean)).astype(X.dtype)
        self.intercept_hidden_ = np.zeros(self.n_components, X.dtype)
        self._start_chains()

    def _start_chains(self) -> None:
        shape = (self.batch_size, len(self.components_))
        self.h_samples_ = np.zeros(shape, self.components_.dtype)
        self._rng = ChainRNG(self._seed())

    def _weights(self) -> list[np.ndarray]:
        """The averages as arrays that can be changed in place, and ``_trained``, what they are the
        averages of: the same again where they were set by hand."""
        missing = ", ".join(name for name in _WEIGHTS if not hasattr(self, name))
        check_is_fitted(self, _WEIGHTS, msg=f"%(name)s has some of its weights, but no {missing}")
        if not hasattr(self, "random_state_"):
            self.random_state_ = check_random_state(self.random_state)
        dtype = _dtype(self)
        W, b, c = weights = [_writeable(getattr(self, name), dtype) for name in _WEIGHTS]
        for name, array in zip(_WEIGHTS, weights, strict=True):
            setattr(self, name, array)
        if W.ndim != 2 or b.shape != W.shape[1:] or c.shape != W.shape[:1]:
            raise ValueError(
                "components_ must be (H, V), intercept_visible_ (V,) and intercept_hidden_ (H,),"
                f" got {W.shape}, {b.shape} and {c.shape}"
            )
        if not hasattr(self, "_rng") or self.h_samples_.shape[1:] != c.shape:
            self._start_chains()
        if self._averaged and all(map(np.array_equal, weights, self._averaged)):
            self._trained = [_writeable(a, dtype) for a in self._trained]
        else:
            self._trained = [a.copy() for a in weights]
        return weights

    def _update(self, batches: Iterable[Tensor]) -> None:
        """An update for each batch: of the trained weights, then of the averages, all in place.

        The sums over data and over chains are one sum over both, weighted by ``sign``.
        """
        weights, rate, n = self._weights(), self.learning_rate, len(self.h_samples_)
        with torch.inference_mode(), full_precision(_CPU):
            W, b, c = trained = [_tensor(a) for a in self._trained]
            averages, transposed = [_tensor(a) for a in weights], W.T
            h, state = _tensor(self.h_samples_).to(W.dtype), self._rng.state()
            t, sign = 0, W.new_empty(0)
            for t, batch in enumerate(batches, 1):
                m, batch = batch.shape[0], batch.to(W.dtype)
                if sign.shape[0] != m + n:
                    signs = [1 / m] * m + [-1 / n] * n
                    sign = torch.tensor(signs, dtype=W.dtype, device=_CPU)
                    column = sign[:, None]
                v_neg = bernoulli_sigmoid_(torch.addmm(b, h, W), state, t=t, tag=VISIBLE)
                v = torch.cat([batch, v_neg])
                logits = torch.addmm(c, v, transposed)
                h = bernoulli_sigmoid(logits[m:], state, t=t, tag=HIDDEN)
                p = logits.sigmoid_().mul_(column)
                W.addmm_(p.T, v, alpha=rate)
                b.addmv_(v.T, sign, alpha=rate)
                c.add_(p.sum(0), alpha=rate)
                share = max(1 - self.averaging, 1 / (self._rng.t + t))
                torch._foreach_lerp_(averages, trained, share)
            self.h_samples_ = h.numpy()
            self._averaged = [a.copy() for a in weights]
            self._rng.advance(t)


def from_sklearn(estimator) -> RBM:
    """The ``RBM`` of a fitted ``BernoulliRBM``, scikit-learn's or that of this module, in the
    dtype of its weights."""
    check_is_fitted(estimator, "components_")
    n_hidden, n_visible = np.shape(estimator.components_)
    with torch.device("meta"):  # no random numbers are drawn for weights that come from elsewhere
        rbm = RBM(n_visible, n_hidden)
    for parameter, name in zip("Wbc", _WEIGHTS, strict=True):
        weights = np.array(getattr(estimator, name), _dtype(estimator), order="C")
        setattr(rbm, parameter, nn.Parameter(torch.from_numpy(weights)))
    return rbm


def to_sklearn(rbm: RBM, **parameters) -> neural_network.BernoulliRBM:
    """A fitted ``sklearn.neural_network.BernoulliRBM`` with the weights of ``rbm``, to transform,
    score and go on training with.

    Args:
        parameters: of its constructor, but for ``n_components``.
    """
    estimator = neural_network.BernoulliRBM(rbm.n_hidden, **parameters)
    estimator.components_ = rbm.W.numpy(force=True).copy()
    estimator.intercept_visible_ = rbm.b.numpy(force=True).copy()
    estimator.intercept_hidden_ = rbm.c.numpy(force=True).copy()
    chains = (estimator.batch_size, rbm.n_hidden)
    estimator.h_samples_ = np.zeros(chains, estimator.components_.dtype)
    estimator.random_state_ = check_random_state(estimator.random_state)
    estimator.n_features_in_ = rbm.n_visible
    return estimator


def _tensor(x) -> Tensor:
    """An array as a tensor on the same memory; a sparse or read-only one as a copy."""
    if isinstance(x, Tensor):
        return x
    x = x.toarray() if issparse(x) else x
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def _dtype(estimator) -> type:
    """Of arithmetic with these weights."""
    return np.float32 if np.asarray(estimator.components_).dtype == np.float32 else np.float64


def _writeable(weights, dtype: type) -> np.ndarray:
    """The array itself where it can be changed in place: joblib hands out read-only ones."""
    return np.require(weights, dtype, ["C", "W"])
