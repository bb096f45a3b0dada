"""The estimators for scikit-learn: its own checks, weights, formulas in the units of the features, and pickles."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")

import sympy
from sklearn.base import clone
from sklearn.datasets import make_friedman1
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data, parametrize_with_checks

from fastkan.sklearn import KANClassifier, KANRegressor

# Most tests make only a few steps.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

TINY: dict[str, Any] = {"hidden_layer_sizes": 1, "grid": 1, "max_iter": 4, "random_state": 0}
RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(-3, 5, (60, 3))
Y = np.sin(X[:, 0]) + X[:, 1] ** 2
NAMES = np.where(np.median(Y) < Y, "high", "low")
THIRDS = np.array(["a", "b", "c"])[np.digitize(Y, np.quantile(Y, [0.33, 0.66]))]


# A network with one hidden node cannot separate the three classes of some checks.
@parametrize_with_checks([KANRegressor(**TINY), KANClassifier(2, 2, max_iter=6, random_state=0)])
def test_estimator(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_weights_are_repetitions_with_default_parameters() -> None:
    """15 rows of 30 features without information: the fit must end before its steps amplify rounding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_sample_weight_equivalence_on_dense_data("KANRegressor", KANRegressor())


# -- weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opt", ["LM", "LBFGS"])
@pytest.mark.parametrize("kind", ["values", "two targets", "two classes", "three classes"])
def test_a_weight_is_a_number_of_equal_rows(opt: str, kind: str) -> None:
    labels = {"values": Y, "two targets": np.stack([Y, X[:, 2]], 1), "two classes": NAMES, "three classes": THIRDS}
    y, weight = labels[kind], RANDOM.integers(0, 4, len(X))
    made = (KANClassifier if "classes" in kind else KANRegressor)(2, opt=opt, max_iter=3, random_state=0)
    weighted = clone(made).fit(X, y, sample_weight=weight)
    repeated = clone(made).fit(X.repeat(weight, 0), y.repeat(weight, 0))
    ours, theirs = (model.model_.predict(weighted._scaled(X)) for model in (weighted, repeated))
    np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-8)
    unweighted = clone(made).fit(X, y)
    assert np.abs(unweighted.model_.predict(weighted._scaled(X)) - ours).max() > 1e-3


def test_class_weight_multiplies_the_weights_of_rows() -> None:
    weight = RANDOM.uniform(0.5, 2, len(X))
    first = KANClassifier(**TINY, class_weight={"high": 3, "low": 1}).fit(X, NAMES, weight)
    second = KANClassifier(**TINY).fit(X, NAMES, np.where(NAMES == "high", 3, 1) * weight)
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
    plain = KANClassifier(**TINY).fit(X, NAMES, weight)
    assert first.predict_proba(X)[:, 0].mean() > plain.predict_proba(X)[:, 0].mean() + 0.01


# -- outputs --------------------------------------------------------------------------------------------


def test_two_classes_have_one_output_and_more_classes_one_each() -> None:
    two, three = KANClassifier(**TINY).fit(X, NAMES), KANClassifier(**TINY).fit(X, THIRDS)
    odds = two.decision_function(X)
    assert odds.shape == (60,)
    assert list(two.classes_) == ["high", "low"]
    np.testing.assert_allclose(two.predict_proba(X)[:, 1], 1 / (1 + np.exp(-odds)), rtol=1e-14)
    np.testing.assert_allclose(two.predict_proba(X).sum(1), 1, rtol=1e-14)
    scores = three.decision_function(X)
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(three.predict_proba(X), expected, rtol=1e-13)
    np.testing.assert_allclose(three.predict_log_proba(X), np.log(expected), rtol=1e-12)
    assert np.array_equal(three.predict(X), three.classes_[scores.argmax(1)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_network_has_the_dtype_of_the_features(dtype: Any) -> None:
    model = KANRegressor(**TINY).fit(X.astype(dtype), Y)
    assert model.model_.dtype == (torch.float32 if dtype is np.float32 else torch.float64)
    assert model.predict(X.astype(dtype)).shape == (60,)


def test_targets_keep_their_dimensions() -> None:
    assert KANRegressor(**TINY).fit(X, Y[:, None]).predict(X).shape == (60, 1)
    assert KANRegressor(**TINY).fit(X, np.stack([Y, -Y], 1)).predict(X).shape == (60, 2)


# -- noise ----------------------------------------------------------------------------------------------


def test_noise_is_not_fitted_and_features_without_information_are_found() -> None:
    """The data are friedman1's, with noise of standard deviation 1; features 5 to 9 have no influence."""
    x, y = make_friedman1(240, noise=1.0, random_state=0)
    x_test, y_test = make_friedman1(500, noise=0.0, random_state=1)
    model = KANRegressor(3, max_iter=25, random_state=0).fit(x, y)
    errors = [np.sqrt(np.mean((model.predict(a) - b) ** 2)) for a, b in ((x, y), (x_test, y_test))]
    assert errors[0] > 0.75  # a fit of the noise has a smaller error on the training rows
    assert errors[1] < 1.0
    assert model.feature_importances_.sum() == pytest.approx(1)
    assert model.feature_importances_[5:].max() < 0.5 * model.feature_importances_[:5].min()
    overfitted = KANRegressor(3, max_iter=25, weight_decay=0.0, random_state=0).fit(x, y)
    assert np.sqrt(np.mean((overfitted.predict(x_test) - y_test) ** 2)) > 1.3 * errors[1]


def test_importances_of_a_linear_function_are_shares_of_the_variance() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)) * [1, 10, 5]
    model = KANRegressor((), max_iter=20, random_state=0).fit(x, x @ [3, 0.4, 0])
    np.testing.assert_allclose(model.feature_importances_, [9 / 25, 16 / 25, 0], atol=0.06)


def test_early_stopping_keeps_the_best_parameters_on_held_out_rows() -> None:
    x, y = make_friedman1(100, noise=2.0, random_state=0)
    options: dict[str, Any] = {"weight_decay": 0.0, "max_iter": 60, "random_state": 0, "opt": "LM"}
    model = KANRegressor(3, early_stopping=True, validation_fraction=0.3, n_iter_no_change=4, **options).fit(x, y)
    losses = model.validation_loss_curve_
    assert model.n_iter_ == len(losses) == int(np.argmin(losses)) + 1 + 4
    assert model.model_.sample.shape == (70, 10)


def test_the_fit_ends_when_the_loss_changes_little() -> None:
    model = KANRegressor(2, max_iter=200, tol=0.05, n_iter_no_change=2, random_state=0).fit(X, Y)
    losses = np.array(model.loss_curve_)
    assert model.n_iter_ == len(losses) < 200
    changes = np.abs(np.diff(losses)) <= 0.05 * losses[:-1]
    assert changes[-2:].all()
    assert not (changes[:-2] & changes[1:-1]).any()


def test_adam_counts_passes() -> None:
    model = KANRegressor(2, opt="Adam", batch=20, max_iter=7, tol=0.0, random_state=0).fit(X, Y)
    assert model.n_iter_ == len(model.loss_curve_) == 7
    assert len(model.model_.history[0]["train_loss"]) == 21


# -- constant features ----------------------------------------------------------------------------------


def with_constant(dtype: Any = np.float64) -> np.ndarray:
    return np.c_[X[:, :1], np.full(60, 0.1), X[:, 1:]].astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_feature_has_no_influence(dtype: Any) -> None:
    """The fit has the same bits as a fit without the feature, which appears neither in predictions nor in formulas."""
    x = with_constant(dtype)
    other = x.copy()
    other[:, 1] = 100
    for made, y in ((KANRegressor(2, max_iter=5, random_state=0), Y), (KANClassifier(**TINY), NAMES)):
        model, without = clone(made).fit(x, y), clone(made).fit(X.astype(dtype), y)
        read = model.decision_function if isinstance(made, KANClassifier) else model.predict
        assert np.array_equal(read(other), read(x))
        assert np.array_equal(model.predict(x), without.predict(X.astype(dtype)))
        assert np.array_equal(model.feature_importances_, np.insert(without.feature_importances_, 1, 0))


def test_a_constant_feature_is_not_in_the_formula() -> None:
    model = KANRegressor(**{**TINY, "hidden_layer_sizes": ()}).fit(with_constant(), Y)
    formula = model.formula(numeric="piecewise")
    assert {str(symbol) for symbol in formula.free_symbols} == {"x_1", "x_3", "x_4"}
    value = formula.subs({f"x_{i + 1}": v for i, v in enumerate(with_constant()[0])})
    assert float(value) == pytest.approx(model.predict(with_constant()[:1])[0], rel=1e-9)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(with_constant()), model.predict(with_constant()))


def test_a_feature_that_is_constant_where_weights_are_positive_has_no_influence() -> None:
    x = with_constant()
    x[::4, 1] = 7
    model = KANRegressor(**TINY).fit(x, Y, sample_weight=np.arange(60) % 4)
    assert model.feature_importances_[1] == 0
    assert np.array_equal(model.predict(x), model.predict(with_constant()))


@pytest.mark.parametrize("hidden", [(), (2,)])
def test_if_all_features_are_constant_the_mean_is_predicted(hidden: tuple[int, ...]) -> None:
    x = np.full((60, 2), 3.0)
    model = KANRegressor(hidden, random_state=0).fit(x, Y)
    np.testing.assert_allclose(model.predict(X[:, :2]), np.full(60, Y.mean()), rtol=1e-6)
    assert np.array_equal(model.feature_importances_, [0, 0])
    third = np.where(np.arange(60) % 3, "a", "b")
    classifier = KANClassifier(hidden, random_state=0).fit(x, third)
    np.testing.assert_allclose(classifier.predict_proba(X[:, :2]), np.full((60, 2), [2 / 3, 1 / 3]), rtol=1e-3)


# -- the network and its formula ------------------------------------------------------------------------


def frame() -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(X, columns=["age", "body mass", "height"])


def test_the_formula_is_in_the_units_and_names_of_the_features() -> None:
    features = frame()
    model = KANRegressor((), max_iter=30, random_state=0).fit(features, 100 * Y + 7)
    for i, name in enumerate(["sin", "x^2", "0"]):
        model.model_.fix_symbolic(0, i, 0, name, verbose=False)
    formula = model.formula()
    variables = [sympy.Symbol(name) for name in ("age", "body mass", "height")]
    assert formula.free_symbols <= set(variables)
    found = sympy.lambdify(variables, formula)(*features.to_numpy().T)
    np.testing.assert_allclose(found, model.predict(features), rtol=1e-9)


def test_a_formula_has_splines_and_one_expression_for_each_output() -> None:
    additive = {**TINY, "hidden_layer_sizes": ()}
    model = KANRegressor(**additive).fit(X, np.stack([Y, -2 * Y], 1))
    formulas = model.formula(numeric="piecewise")
    found = [[float(each.subs({f"x_{i + 1}": v for i, v in enumerate(row)})) for each in formulas] for row in X[:3]]
    np.testing.assert_allclose(found, model.predict(X[:3]), rtol=1e-9)
    two, three = KANClassifier(**additive).fit(X, NAMES), KANClassifier(**additive).fit(X, THIRDS)
    formula = two.formula(numeric="piecewise")
    value = float(formula.subs({f"x_{i + 1}": v for i, v in enumerate(X[0])}))
    assert value == pytest.approx(two.decision_function(X[:1])[0], rel=1e-9)
    assert len(three.formula(numeric="piecewise")) == 3


def test_the_workflow_changes_the_predictions() -> None:
    model = KANRegressor(**TINY).fit(X, Y)
    before = model.predict(X)
    model.model_.remove_edge(0, 0, 0)
    model.model_ = model.model_.prune()
    assert np.abs(model.predict(X) - before).max() > 1e-3


# -- scikit-learn's tools -------------------------------------------------------------------------------


def test_a_clone_predicts_the_same_bits_and_leaves_the_global_generators() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = KANClassifier(**TINY, opt="Adam").fit(X, THIRDS)
    assert np.array_equal(clone(first).fit(X, THIRDS).predict_proba(X), first.predict_proba(X))
    other = clone(first).set_params(random_state=1).fit(X, THIRDS)
    assert not np.array_equal(other.predict_proba(X), first.predict_proba(X))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_a_pickle_has_no_training_data() -> None:
    """The pickle of a fit to 1000 rows is no longer than that of a fit to 60 rows, and contains none of the values."""
    sizes = []
    for rows in (60, 1000):
        x = np.random.default_rng(1).normal(size=(rows, 3))
        model = KANRegressor(**TINY).fit(x, x[:, 0])
        text = pickle.dumps(model)
        assert x[7].tobytes() not in text
        assert x[7, 0].tobytes() not in text
        again = pickle.loads(text)
        assert np.array_equal(again.predict(x), model.predict(x))
        assert np.array_equal(again.feature_importances_, model.feature_importances_)
        sizes.append(len(text))
    assert abs(sizes[0] - sizes[1]) < 200


def test_a_grid_search_over_a_pipeline_in_two_processes() -> None:
    pipeline = make_pipeline(MinMaxScaler(), KANClassifier(**TINY))
    search = GridSearchCV(pipeline, {"kanclassifier__grid": [1, 2]}, n_jobs=2, cv=2, error_score="raise")
    search.fit(X, NAMES)
    assert search.best_params_["kanclassifier__grid"] in (1, 2)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_partial_fit_continues_with_the_same_units_and_grids() -> None:
    options = {**TINY, "batch": 20}
    model = KANRegressor(**options).partial_fit(X, Y)
    mean, knots = model.mean_, [layer.knots.clone() for layer in model.model_.layers]
    before = model.predict(X)
    model.partial_fit(X[:1] + 100, Y[:1])
    assert not np.array_equal(model.predict(X), before)
    assert model.mean_ is mean
    assert all(map(torch.equal, knots, [layer.knots for layer in model.model_.layers]))
    for _ in range(30):
        model.partial_fit(X, Y)
    assert np.mean((model.predict(X) - Y) ** 2) < np.mean((before - Y) ** 2)


@pytest.mark.parametrize("opt", ["auto", "LBFGS"])
def test_partial_fit_on_the_same_rows_keeps_a_fit(opt: str) -> None:
    x, y = make_friedman1(120, noise=1.0, random_state=0)
    x_test, y_test = make_friedman1(300, noise=0.0, random_state=1)
    model = KANRegressor(2, opt=opt, max_iter=25, lr=1.0, random_state=0).fit(x, y)
    before = model.score(x, y), model.score(x_test, y_test)
    for _ in range(2):
        model.partial_fit(x[::-1], y[::-1])
    assert model.score(x, y) > before[0] - 0.01
    assert model.score(x_test, y_test) > before[1] - 0.02
    assert len(model._memory[0]) == 120


def test_partial_fit_learns_from_a_stream() -> None:
    x, y = make_friedman1(400, noise=1.0, random_state=0)
    x_test, y_test = make_friedman1(300, noise=0.0, random_state=1)
    model, scores = KANRegressor(3, random_state=0), []
    for start in range(0, 400, 50):
        model.partial_fit(x[start : start + 50], y[start : start + 50])
        scores.append(model.score(x_test, y_test))
    assert scores[-1] > 0.97
    assert min(scores[2:]) > 0.85


@pytest.mark.parametrize("labels", [None, NAMES, THIRDS])
def test_partial_fit_after_a_pickle_remembers_by_predictions(labels: Any) -> None:
    """The new rows are from a small part of the domain."""
    made = KANRegressor(2, max_iter=15, random_state=0) if labels is None else KANClassifier(2, random_state=0)
    y = Y if labels is None else labels
    model = made.fit(X, y)
    before, part = model.score(X, y), X[:, 0] > 2
    again = pickle.loads(pickle.dumps(model))
    assert again._memory is None
    again.partial_fit(X[part], y[part])
    assert again._seen == pytest.approx(60 + part.sum())
    assert again.score(X, y) > before - 0.03


def test_partial_fit_keeps_a_random_selection_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkan.sklearn.MAX_MEMORY", 40)
    model = KANRegressor(**TINY).partial_fit(X, Y).partial_fit(X[:10] + 1, Y[:10])
    rows, targets, weight = model._memory
    assert len(rows) == len(targets) == 40
    assert weight.sum() == pytest.approx(70)


def test_equal_rows_of_a_table_of_few_values_all_count() -> None:
    x, y = np.repeat([[0.0], [1.0]], 15, 0), np.repeat(["a", "b"], 15)
    model = KANClassifier((), random_state=0).partial_fit(x, y).partial_fit(x[:20], y[:20])
    assert len(model._memory[0]) == 50


def test_partial_fit_by_adam_makes_one_pass_over_the_new_rows() -> None:
    model = KANRegressor(2, opt="Adam", batch=20, random_state=0).partial_fit(X, Y).partial_fit(X[:40], Y[:40])
    assert [len(run["train_loss"]) for run in model.model_.history] == [3, 2]


def test_partial_fit_of_classes_that_come_later() -> None:
    first = THIRDS != "c"
    model = KANClassifier(**TINY).partial_fit(X[first], THIRDS[first], classes=["a", "b", "c"])
    model.partial_fit(X, THIRDS)
    assert model.predict_proba(X).shape == (60, 3)
    with pytest.raises(ValueError, match=r"y must have only the classes \['a' 'b' 'c'\] of .* fit, got also \['d'\]"):
        model.partial_fit(X[:2], ["a", "d"])


def test_warm_start_continues() -> None:
    model = KANRegressor(2, opt="LBFGS", max_iter=2, warm_start=True, random_state=0).fit(X, Y)
    first = model.loss_curve_[-1]
    network = model.model_
    model.fit(X, Y)
    assert model.model_ is network
    assert model.loss_curve_[-1] < first
    with pytest.raises(ValueError, match="y must have 1 targets as in the first fit, got 2"):
        model.fit(X, np.stack([Y, Y], 1))


def test_a_fit_that_has_not_converged_warns() -> None:
    with pytest.warns(ConvergenceWarning, match="not converged in max_iter=4 steps") as caught:
        KANRegressor(**TINY).fit(X, Y)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KANRegressor(**{**TINY, "max_iter": 20, "tol": 10.0}).fit(X, Y)
        KANRegressor(**TINY).partial_fit(X, Y)


def test_logarithms_of_small_probabilities_are_finite() -> None:
    for labels in (NAMES, THIRDS):
        model = KANClassifier((), max_iter=3, random_state=0).fit(X, labels)
        for layer in model.model_.layers:
            layer.base_weight.data.mul_(1e6)
        assert (model.predict_proba(X) == 0).any()
        assert np.isfinite(model.predict_log_proba(X)).all()


@pytest.mark.parametrize("made", [KANRegressor(), KANClassifier()])
def test_the_formula_needs_a_fit(made: Any) -> None:
    with pytest.raises(NotFittedError):
        made.formula()


def test_classes_cannot_change() -> None:
    model = KANClassifier(**TINY).partial_fit(X, NAMES, classes=["low", "high"])
    model.partial_fit(X, NAMES, classes=["high", "low"])
    with pytest.raises(ValueError, match=r"classes must be .* as in the first fit, got"):
        model.partial_fit(X, NAMES, classes=["high", "low", "other"])


@pytest.mark.parametrize("opt", ["LM", "LBFGS", "Adam"])
def test_a_fit_in_inference_mode_is_the_same(opt: str) -> None:
    with torch.inference_mode():
        model = KANRegressor(**TINY, opt=opt).fit(X, Y)
        found = model.predict(X)
    np.testing.assert_array_equal(found, KANRegressor(**TINY, opt=opt).fit(X, Y).predict(X))
    assert not model.model_.layers[0].spline_weight.is_inference()
    model.partial_fit(X, Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opt": "SGD"}, "opt must be one of"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"early_stopping": True, "validation_fraction": 1.0}, "validation_fraction must be above 0 and below 1"),
        ({"hidden_layer_sizes": (0,)}, "width"),
        ({"tol": np.nan}, "tol must be finite"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be at least 1"),
        ({"opt": "LM", "lamb": 0.1}, "opt='LM' needs lamb=0"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KANRegressor(**options).fit(X, Y)
    assert not hasattr(KANRegressor(**options), "model_")


def test_weights_that_leave_too_little() -> None:
    with pytest.raises(ValueError, match="at least 2 rows must have a positive sample_weight, got 1"):
        KANRegressor(**TINY).fit(X, Y, sample_weight=np.arange(60) == 3)
