"""Estimators for scikit-learn that train a KAN: ``KANRegressor`` and ``KANClassifier``.

The module needs scikit-learn (``pip install fastkan[sklearn]``).
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastkan_kernels import Choice, Int, Real

from .kan import KAN
from .layers.grid import interior

# Maximum number of parameters, and of multiplications in a step, for which opt="auto" is Levenberg-Marquardt.
MAX_LM_PARAMETERS, MAX_LM_PRODUCTS = 2000, 1 << 34
# Maximum number of rows for which opt="auto" chooses L-BFGS, whose steps use all rows.
MAX_LBFGS_ROWS = 2000
# A loss below this value has converged if it changes by less than tol times this value. A mean squared error is in
# units of the variance of the targets.
MIN_LOSS = 1e-3
# Number of iterations during which the grids move. Later moves would disturb the estimates of the weight decay by "LM".
GRID_STEPS = {"LM": 20, "LBFGS": 50, "Adam": 50}
# Number of rows of a batch of Adam with batch="auto".
BATCH = 200
# Learning rates with lr="auto". Only the learning rate of Adam determines the length of every update.
LEARNING_RATES = {"LM": 1.0, "LBFGS": 1.0, "Adam": 1e-2}
# Maximum number of rows that partial_fit uses again, and of its steps in one call.
MAX_MEMORY, PARTIAL_STEPS = 10_000, 10
# Number of random rows that take the place of earlier rows after a pickle was loaded, and the minimum number of rows of
# a call that may be recognized as earlier rows.
REMEMBERED_ROWS, MIN_REPEATED_ROWS = 1000, 20
MAX_SEED = 2**31 - 1  # Seeds are drawn below this number.

_PARAMETERS = """
    Args:
        hidden_layer_sizes: number of nodes of each hidden layer; ``()`` is a sum of one function for each feature (a
            generalized additive model).
        grid, k: number of grid intervals and order of the splines.
        opt: the optimizer, ``"LM"``, ``"LBFGS"`` or ``"Adam"`` as in :meth:`KAN.fit`. ``"auto"`` is ``"LM"`` for
            networks of at most 2000 parameters (unless the data are so large that its steps become slow), otherwise
            ``"LBFGS"`` for at most 2000 rows, otherwise ``"Adam"``.
        max_iter: maximum number of steps or, with ``"Adam"``, of passes over the data.
        weight_decay: factor of half the sum of squares of the spline coefficients and base weights in the objective.
            With ``"auto"`` and ``"LM"``, the factors are estimated from the data for each input, so that noise is
            fitted little and features without information lose most of their influence (see
            :class:`fastkan.training.evidence.Evidence`). With ``"auto"`` and other optimizers, the factor is 1 / rows.
        lamb: factor of the penalty that makes the network sparse, as in :meth:`KAN.fit`; it needs ``"LBFGS"`` or
            ``"Adam"``.
        lr: the learning rate; ``"auto"`` is 0.01 for ``"Adam"`` and 1 otherwise. ``"LM"`` does not use it.
        batch: number of rows in each step of ``"Adam"``; ``"auto"`` is 200.
        tol, n_iter_no_change: the fit ends when the training loss, or 0.001 if it is smaller, has changed by at most
            the fraction ``tol`` in each of the last ``n_iter_no_change`` steps or, with ``early_stopping``, when the
            loss on the held-out rows has not improved for that many steps.
        early_stopping: whether to hold out the fraction ``validation_fraction`` of the rows, and to keep the parameters
            with the smallest loss on these rows.
        warm_start: whether :meth:`fit` continues with the network of the last fit.
        random_state: seed of the initial parameters, the batches and the held-out rows, or a ``RandomState``.
        device: device of the network, as for ``torch.device``.
        verbose: whether to show a progress bar.
"""

_ATTRIBUTES = """
    Attributes:
        model_: the fitted :class:`KAN`, for standardized features. It has an input for each feature that is not
            constant in the training data; ``model_.input_id`` has their columns. ``estimator.model_.plot()``,
            ``auto_symbolic()`` and all other methods of a :class:`KAN` can be called; ``estimator.model_ =
            estimator.model_.prune()`` replaces the network. For these methods, the network keeps at most 10,000
            training rows, which pickles do not contain.
        feature_importances_: importance of each feature, with the sum 1: the mean square of the derivative of the
            outputs with respect to the standardized feature. For a linear function of independent features, it is the
            share of each feature in the variance of the output.
        n_iter_, loss_curve_: number of steps (with ``"Adam"``, of passes), and the training loss after each of them.
        validation_loss_curve_: loss on the held-out rows after each step, with ``early_stopping``.
        n_features_in_, feature_names_in_: number and names of the features.
"""


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


class _KANEstimator(BaseEstimator):
    """The part that both estimators have in common: reading data, standardization and training.

    The network gets features with mean 0 and standard deviation 1. It does not read features that are constant in the
    training data. Outside of the range of the training data, its splines continue along their tangents. The network is
    float32 if X is float32, and float64 otherwise.
    """

    model_: KAN
    _outputs: int
    # Features, targets and weights of the rows so far, or of a random selection of them, for ``partial_fit``, and the
    # sum of the weights. Pickles do not contain the rows.
    _memory: Rows | None = None
    _seen: float

    def __init__(
        self,
        hidden_layer_sizes=(5,),
        grid=3,
        k=3,
        *,
        opt="auto",
        max_iter=100,
        weight_decay="auto",
        lamb=0.0,
        lr="auto",
        batch="auto",
        tol=1e-4,
        n_iter_no_change=5,
        early_stopping=False,
        validation_fraction=0.1,
        warm_start=False,
        random_state=None,
        device=None,
        verbose=False,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.grid = grid
        self.k = k
        self.opt = opt
        self.max_iter = max_iter
        self.weight_decay = weight_decay
        self.lamb = lamb
        self.lr = lr
        self.batch = batch
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # -- training -----------------------------------------------------------------------------------

    def _read_x(self, X: Any, reset: bool, **options: Any) -> Any:
        return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], **options)

    def _read_weight(self, sample_weight: Any, X: np.ndarray) -> np.ndarray | None:
        if sample_weight is None:
            return None
        return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def _train(
        self, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, continues: bool, partial: bool = False
    ) -> None:
        """Train on ``y``, which is ``[N, outputs]`` or, for classes, ``[N]``.

        Args:
            continues: whether to train the existing network further.
            partial: whether this is a call of ``partial_fit``.
        """
        random = check_random_state(self.random_state)
        seed, held_out_seed = (int(random.randint(MAX_SEED)) for _ in range(2))
        if weight is not None:
            keep = weight > 0
            X, y, weight = X[keep], y[keep], weight[keep]
            if len(X) < 2:
                raise ValueError(f"at least 2 rows must have a positive sample_weight, got {len(X)}")
        self._check_targets(y)
        test = None
        if self.early_stopping and not partial:
            share = Real(above=0, below=1).read("validation_fraction", self.validation_fraction)
            split = train_test_split(
                X, y, np.ones(len(X)) if weight is None else weight, test_size=share, random_state=held_out_seed,
                stratify=y if self._is_classifier else None,
            )  # fmt: skip
            X, test_x, y, test_y = split[:4]
            weight, test = None if weight is None else split[4], (test_x, test_y)
            self._check_targets(y)
        if not continues:
            self._set_scales(X, y, weight)
            self.model_ = self._new_network(X.dtype, seed)
        opt, options = self._optimizer(len(X), partial)
        rows = X, y, np.ones(len(X)) if weight is None else weight
        if continues and partial:
            rows = _united(self._remembered(random, X.dtype) if self._memory is None else self._memory, rows)
        # Random rows take the place of all rows if there are too many. The sum of the weights stays the same.
        self._seen = float(rows[2].sum())
        if len(rows[0]) > MAX_MEMORY:
            chosen = random.choice(len(rows[0]), MAX_MEMORY, replace=False, p=rows[2] / self._seen)
            rows = rows[0][chosen], rows[1][chosen], np.full(MAX_MEMORY, self._seen / MAX_MEMORY)
        self._memory = rows
        if partial and opt != "Adam":
            X, y, weight = rows
        x, target = self._scaled(X), self._scaled_target(y)
        data = {"train_input": x, "train_label": target}
        if test is not None:
            data.update(test_input=self._scaled(test[0]), test_label=self._scaled_target(test[1]))
        lamb = Real(least=0).read("lamb", self.lamb)
        patience = Int(least=1).read("n_iter_no_change", self.n_iter_no_change)
        max_iter = Int(least=1).read("max_iter", self.max_iter)
        if partial:
            max_iter = 1 if opt == "Adam" else min(max_iter, PARTIAL_STEPS)
        batch = options.get("batch", -1)
        updates = 1 if batch == -1 else max(1, len(x) // batch)  # number of steps of KAN.fit in one iteration
        stop = _StopWhenConverged(updates, patience, Real(least=0).read("tol", self.tol))
        if test is None and not partial:
            options["callbacks"] = [stop]
        elif test is not None:
            options["early_stopping"] = patience * updates
        with warnings.catch_warnings():
            # The warning advises to normalise the inputs, but the features are already standardized.
            warnings.filterwarnings("ignore", "the inputs' columns", UserWarning)
            found = self.model_.fit(
                data, opt=opt, steps=max_iter * updates, lamb=lamb, loss_fn=self._loss(), sample_weight=weight,
                weight_decay=self._decay(opt, weight, len(x)), log=updates, seed=seed, progress=bool(self.verbose),
                update_grid=not (continues and partial), stop_grid_update_step=GRID_STEPS[opt] * updates, **options,
            )  # fmt: skip
        self.loss_curve_ = _means(found["train_loss"], updates)
        if test is not None:
            self.validation_loss_curve_ = found["test_loss"][updates - 1 :: updates]
        self.n_iter_ = len(self.loss_curve_)
        if test is None and not partial and not stop.has_converged:
            warnings.warn(
                f"the fit has not converged in max_iter={max_iter} steps; increase max_iter or tol={self.tol}",
                ConvergenceWarning,
                stacklevel=6,
            )
        self.feature_importances_ = _importances(self.model_)

    def _set_scales(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> None:
        self.mean_, self.scale_, self._is_constant = _mean_and_scale(X, weight)

    def _new_network(self, dtype: Any, seed: int) -> KAN:
        hidden = self.hidden_layer_sizes
        hidden = [hidden] if isinstance(hidden, (int, np.integer)) else list(hidden)
        # A network without inputs is impossible. If all features are constant, the network has one input whose edges
        # are off, and its output is the bias.
        columns = np.flatnonzero(~self._is_constant)
        reads = len(columns) > 0
        model = KAN(
            [max(1, len(columns)), *hidden, self._outputs], self.grid, self.k, seed=seed, sp_trainable=False,
            dtype=torch.float32 if dtype == np.float32 else torch.float64, device=self.device, outside="linear",
            affine_trainable=not reads,
        )  # fmt: skip
        model.in_features = len(self.mean_)
        model.input_id = torch.from_numpy(columns if reads else np.zeros(1, np.int64)).to(model.device)
        if not reads:
            model.layers[0].set_mask(torch.zeros(model.layers[0].in_features, model.layers[0].out_features))
            model.layers[0]._freeze_if_idle()
        return model

    def _optimizer(self, rows: int, partial: bool) -> tuple[str, dict[str, Any]]:
        """Return the name of the optimizer and its options.

        For calls of ``partial_fit``, ``opt="auto"`` depends on the network only, because Adam would undo what another
        optimizer has found in an earlier call.
        """
        opt = Choice(("auto", *LEARNING_RATES)).read("opt", self.opt)
        batch = BATCH if self.batch == "auto" else Int(least=1).read("batch", self.batch)
        if opt == "auto":
            count = sum(parameter.numel() for parameter in self.model_.parameters() if parameter.requires_grad)
            is_quick = partial or count**2 * rows * self._outputs <= MAX_LM_PRODUCTS
            is_small = count <= MAX_LM_PARAMETERS and is_quick
            opt = "LM" if is_small and not self.lamb else "LBFGS" if partial or rows <= MAX_LBFGS_ROWS else "Adam"
        options: dict[str, Any] = {"batch": min(batch, rows)} if opt == "Adam" else {}
        options["lr"] = LEARNING_RATES[opt] if self.lr == "auto" else self.lr
        return opt, options

    def _remembered(self, random: Any, dtype: Any) -> Rows:
        """Return rows that take the place of earlier rows after a pickle was loaded: random features, which are
        independent and distributed as the knots, and the predictions for them."""
        model, layer = self.model_, self.model_.layers[0]
        knots = interior(layer.knots, layer.spline_order).double().cpu().numpy()
        X = np.tile(self.mean_, (REMEMBERED_ROWS, 1))
        for column, points in zip(model.input_id.tolist(), knots):
            values = np.interp(random.random_sample(len(X)), np.linspace(0, 1, len(points)), points)
            X[:, column] += self.scale_[column] * values
        X = X.astype(dtype)
        y, weight = self._predicted_targets(X)
        return np.resize(X, (len(y), X.shape[1])), y, weight * (self._seen / weight.sum())

    def _decay(self, opt: str, weight: np.ndarray | None, rows: int) -> float | str:
        if self.weight_decay != "auto":
            return Real(least=0).read("weight_decay", self.weight_decay)
        return "auto" if opt == "LM" else 1 / (rows if weight is None else float(weight.sum()))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickles, which has no training data."""
        state = super().__getstate__()
        return {name: None if name == "_memory" else value for name, value in state.items()}

    # -- use ----------------------------------------------------------------------------------------

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        return ((X - self.mean_) / self.scale_).astype(X.dtype)

    def _outputs_for(self, X: Any) -> np.ndarray:
        """Return the outputs ``[N, outputs]`` of the network."""
        check_is_fitted(self)
        return self.model_.predict(self._scaled(self._read_x(X, reset=False)))

    def _formulas(self, output_normalizer: Any, options: dict[str, Any]) -> list[Any]:
        names = getattr(self, "feature_names_in_", None)
        var = None if names is None else [str(name) for name in names]
        return self.model_.symbolic_formula(var, [self.mean_, self.scale_], output_normalizer, **options)[0]


class KANRegressor(RegressorMixin, _KANEstimator):
    __doc__ = f"""A regressor that trains a Kolmogorov-Arnold network by the mean squared error.

    Features and targets are standardized. There may be several targets, and rows may have weights: a row of weight 2
    counts as two rows.
{_PARAMETERS}{_ATTRIBUTES}
    Example:
        >>> from fastkan.sklearn import KANRegressor
        >>> X = np.random.default_rng(0).uniform(-1, 1, (200, 2))
        >>> y = np.sin(3 * X[:, 0]) + X[:, 1] ** 2
        >>> regressor = KANRegressor(random_state=0).fit(X[:150], y[:150])
        >>> regressor.score(X[150:], y[150:]) > 0.999
        True
    """

    _is_classifier = False

    def fit(self, X, y, sample_weight=None):
        """Train the network on features ``X [N, features]`` and targets ``y [N]`` or ``[N, targets]``."""
        return self._fit(X, y, sample_weight, self.warm_start and hasattr(self, "model_"), partial=False)

    def partial_fit(self, X, y, sample_weight=None):
        """Train the network further with new rows.

        Up to 10 steps are made on all rows so far, or on a random selection of 10,000 of them, so that the network
        keeps what it has learned. Pickles and copies do not contain these rows: predictions for random features take
        their place. With ``opt="Adam"``, one pass over the new rows is made instead.

        The first call after no fit sets the scales, the grids and the features that are constant. Rows of an earlier
        call are no further evidence: a call with only such rows makes steps without counting them again.
        """
        return self._fit(X, y, sample_weight, hasattr(self, "model_"), partial=True)

    def _fit(self, X, y, sample_weight, continues, partial):
        X, y = self._read_x(
            X, not continues, y=y, multi_output=True, y_numeric=True, ensure_min_samples=1 if continues else 2
        )
        weight = self._read_weight(sample_weight, X)
        targets = y.reshape(len(y), -1).astype(np.float64)
        if continues and targets.shape[1] != self._outputs:
            raise ValueError(f"y must have {self._outputs} targets as in the first fit, got {targets.shape[1]}")
        self._outputs, self._is_flat = targets.shape[1], y.ndim == 1
        self._train(X, targets, weight, continues, partial)
        return self

    def predict(self, X):
        """Return the predictions ``[N]``, or ``[N, targets]`` if ``y`` had two dimensions."""
        y = self._outputs_for(X) * self.target_scale_ + self.target_mean_
        return y[:, 0] if self._is_flat else y

    def formula(self, **options: Any) -> Any:
        """Return the prediction as a sympy expression in the names and the units of the features.

        Edges that are not replaced by functions, as by ``model_.auto_symbolic()``, appear as splines.

        Args:
            options: ``digits``, ``numeric`` and ``simplify`` as in :meth:`KAN.symbolic_formula`.

        Returns:
            An expression, or a list with one for each target if ``y`` had two dimensions.
        """
        check_is_fitted(self)
        formulas = self._formulas([self.target_mean_, self.target_scale_], options)
        return formulas[0] if self._is_flat else formulas

    def _set_scales(self, X, y, weight):
        super()._set_scales(X, y, weight)
        self.target_mean_, self.target_scale_, _ = _mean_and_scale(y, weight)

    def _scaled_target(self, y):
        return (y - self.target_mean_) / self.target_scale_

    def _predicted_targets(self, X):
        y = self.model_.predict(self._scaled(X)) * self.target_scale_ + self.target_mean_
        return y.astype(np.float64), np.ones(len(X))

    def _check_targets(self, y):
        pass

    def _loss(self):
        return None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class KANClassifier(ClassifierMixin, _KANEstimator):
    __doc__ = f"""A classifier that trains a Kolmogorov-Arnold network by the cross entropy.

    Features are standardized. The network has one output for two classes, the log odds of the second class, and one
    output for each class otherwise. Rows may have weights: a row of weight 2 counts as two rows.
{_PARAMETERS}        class_weight: weights of the classes, as a dictionary, or ``"balanced"``.
{_ATTRIBUTES}        classes_: the classes, in the order of the columns of :meth:`predict_proba`.

    Example:
        >>> from fastkan.sklearn import KANClassifier
        >>> X = np.random.default_rng(0).uniform(-1, 1, (300, 2))
        >>> y = np.where((X**2).sum(1) < 0.6, "inside", "outside")
        >>> classifier = KANClassifier(random_state=0).fit(X[:200], y[:200])
        >>> classifier.score(X[200:], y[200:]) > 0.95
        True
    """

    _is_classifier = True

    # scikit-learn reads the names of the parameters from the signature, so the signature cannot be shared.
    def __init__(
        self,
        hidden_layer_sizes=(5,),
        grid=3,
        k=3,
        *,
        opt="auto",
        max_iter=100,
        weight_decay="auto",
        lamb=0.0,
        lr="auto",
        batch="auto",
        tol=1e-4,
        n_iter_no_change=5,
        early_stopping=False,
        validation_fraction=0.1,
        class_weight=None,
        warm_start=False,
        random_state=None,
        device=None,
        verbose=False,
    ):
        super().__init__(
            hidden_layer_sizes, grid, k, opt=opt, max_iter=max_iter, weight_decay=weight_decay, lamb=lamb, lr=lr,
            batch=batch, tol=tol, n_iter_no_change=n_iter_no_change, early_stopping=early_stopping,
            validation_fraction=validation_fraction, warm_start=warm_start, random_state=random_state, device=device,
            verbose=verbose,
        )  # fmt: skip
        self.class_weight = class_weight

    def fit(self, X, y, sample_weight=None):
        """Train the network on features ``X [N, features]`` and labels ``y [N]``, which may be numbers or strings."""
        return self._fit(X, y, sample_weight, None, self.warm_start and hasattr(self, "model_"), partial=False)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train the network further with new rows.

        Up to 10 steps are made on all rows so far, or on a random selection of 10,000 of them, so that the network
        keeps what it has learned. Pickles and copies do not contain these rows: predictions for random features take
        their place. With ``opt="Adam"``, one pass over the new rows is made instead.

        The first call after no fit sets the scales, the grids and the features that are constant. Rows of an earlier
        call are no further evidence: a call with only such rows makes steps without counting them again.

        Args:
            classes: all classes. The first call needs this argument unless its rows contain all classes.
        """
        return self._fit(X, y, sample_weight, classes, hasattr(self, "model_"), partial=True)

    def _fit(self, X, y, sample_weight, classes, continues, partial):
        X, y = self._read_x(X, not continues, y=y, ensure_min_samples=1 if continues else 2)
        check_classification_targets(y)
        weight = self._read_weight(sample_weight, X)
        if not continues:
            self.classes_ = np.unique(y if classes is None else classes)
            self._all_classes_known = classes is not None
            self._outputs = 1 if len(self.classes_) <= 2 else len(self.classes_)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes must be {self.classes_} as in the first fit, got {np.unique(classes)}")
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y must have only the classes {self.classes_} of the first fit, got also {unknown}")
        if self.class_weight is not None:
            balance = compute_sample_weight(self.class_weight, y)
            weight = balance if weight is None else weight * balance
        self._train(X, np.searchsorted(self.classes_, y), weight, continues, partial)
        return self

    def decision_function(self, X):
        """Return the log odds ``[N]`` of the second of two classes, or the outputs ``[N, classes]``."""
        y = self._outputs_for(X)
        return y[:, 0] if len(self.classes_) == 2 else y

    def predict_proba(self, X):
        """Return the probabilities ``[N, classes]``."""
        return self._probabilities(self._outputs_for(X))

    def predict_log_proba(self, X):
        """Return the logarithms of the probabilities ``[N, classes]``."""
        y = torch.from_numpy(self._outputs_for(X))
        if len(self.classes_) == 2:
            return torch.nn.functional.logsigmoid(torch.cat([-y, y], 1)).numpy()
        return y.log_softmax(1).numpy()

    def _probabilities(self, outputs):
        y = torch.from_numpy(outputs)
        return (torch.cat([-y, y], 1).sigmoid() if len(self.classes_) == 2 else y.softmax(1)).numpy()

    def predict(self, X):
        """Return the most probable classes ``[N]``."""
        y = self.decision_function(X)
        return self.classes_[(y > 0).astype(int) if y.ndim == 1 else y.argmax(1)]

    def formula(self, **options: Any) -> Any:
        """Return the decision function as a sympy expression in the names and the units of the features.

        Edges that are not replaced by functions, as by ``model_.auto_symbolic()``, appear as splines.

        Args:
            options: ``digits``, ``numeric`` and ``simplify`` as in :meth:`KAN.symbolic_formula`.

        Returns:
            An expression for the log odds of the second of two classes, or a list with one for each class.
        """
        check_is_fitted(self)
        formulas = self._formulas(None, options)
        return formulas[0] if len(self.classes_) == 2 else formulas

    def _scaled_target(self, y):
        return y.astype(np.float64)[:, None] if self._outputs == 1 else y

    def _predicted_targets(self, X):
        """Return every class for all rows in turn, with the probabilities as weights."""
        share = self._probabilities(self.model_.predict(self._scaled(X)))
        return np.repeat(np.arange(share.shape[1]), len(X)), share.T.ravel()

    def _check_targets(self, y):
        if not self._all_classes_known and len(np.unique(y)) < 2:
            raise ValueError("y must have at least 2 classes in the rows that are used, got 1 class")

    def _loss(self):
        return torch.nn.BCEWithLogitsLoss() if self._outputs == 1 else torch.nn.CrossEntropyLoss()


def _importances(model: KAN) -> np.ndarray:
    """Return the mean square of the derivative with respect to each feature on the rows of the last fit, as a share of
    the sum over all features.

    The attribution scores of the network are no substitute, since they count hidden nodes that cancel each other.
    """
    assert model.sample is not None
    total = torch.zeros(model.in_features, dtype=torch.float64, device=model.device)
    with torch.enable_grad():
        for rows in model.sample.split(1000):
            x = rows.clone().requires_grad_()
            y = model(x).sum(0)
            for output in y:
                (slope,) = torch.autograd.grad(output, x, retain_graph=True)
                total += slope.double().square().sum(0)
    found = total.nan_to_num(0.0).cpu().numpy()
    return found / max(float(found.sum()), np.finfo(float).tiny)


def _united(earlier: Rows, new: Rows) -> Rows:
    """Return earlier and new rows, or the earlier rows if they contain all new rows.

    Rows that are passed again are no further evidence, and would make noise look like a part of the function. If there
    are only a few rows, or rows occur repeatedly in one call, equal rows can be different samples, so all are kept.
    """
    old, more = (np.column_stack(rows[:2]) for rows in (earlier, new))
    both = tuple(np.concatenate(pair) for pair in zip(earlier, new))
    if len(more) >= MIN_REPEATED_ROWS:
        distinct = [len(np.unique(rows, axis=0)) for rows in (old, more, np.concatenate([old, more]))]
        if distinct == [len(old), len(more), len(old)]:
            return earlier
    return both  # type: ignore[return-value]


class _StopWhenConverged:
    """A callback that ends a fit when the training loss has changed little in each of the last iterations."""

    has_converged = False

    def __init__(self, updates: int, patience: int, tol: float) -> None:
        self.updates, self.patience, self.tol = updates, patience, tol

    def __call__(self, model: Any, step: int, results: dict[str, list[float]]) -> bool:
        if (step + 1) % self.updates:
            return False
        losses = _means(results["train_loss"][-self.updates * (self.patience + 1) :], self.updates)
        changes = (abs(a - b) <= self.tol * max(abs(a), MIN_LOSS) for a, b in itertools.pairwise(losses))
        self.has_converged = len(losses) > self.patience and all(changes)
        return self.has_converged


def _means(losses: list[float], count: int) -> list[float]:
    """Return the means of the losses of every ``count`` steps."""
    return [float(np.mean(losses[start : start + count])) for start in range(0, len(losses), count)]


def _mean_and_scale(values: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weighted mean of each column in float64, the standard deviation or 1 if the column is constant, and
    whether the column is constant."""
    values = values.astype(np.float64)
    mean = np.average(values, axis=0, weights=weight)
    std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    is_constant = (std <= 10 * np.finfo(np.float64).eps * np.abs(values).max(0)) | (np.ptp(values, axis=0) == 0)
    return mean, np.where(is_constant, 1.0, std), is_constant
