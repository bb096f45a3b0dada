"""The predictions that stand in the READMEs."""

import json

import pytest

from bench.gpu import bars, predict
from bench.records import RESULTS
from fastkan_kernels.backends.triton import hardware, rules


@pytest.fixture(autouse=True)
def all_implementations(monkeypatch):
    """Triton's interpreter does not support all implementations."""
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    monkeypatch.setattr(rules, "gluon_available", lambda: True)


def test_the_committed_predictions_are_those_of_the_cost_model():
    """Otherwise run python -m bench.gpu.predict and python -m bench.report."""
    assert json.loads((RESULTS / predict.FILE).read_text()) == predict.as_json()


def test_each_prediction_is_called_a_prediction():
    for row in predict.as_json()["bars"]:
        assert row["verdict"].startswith("predicted: ") or row["predicted"] == "not covered by the cost model"
    assert "nothing in the tables was measured" in predict.block()


def test_a_bar_is_the_ratio_of_the_predicted_times():
    row = bars.FIRST
    found = predict.contractions(row)
    assert [one.contraction for one in found] == ["F", "G", "H"]
    bar = next(bar for bar in bars.BARS if bar.row == row.name and bar.anchor == bars.LINEAR)
    ratio = sum(one.seconds for one in found) / predict.anchors(row)[bars.LINEAR]
    assert predict.predicted()[bar.name] == pytest.approx(ratio)
    (forward,) = predict.contractions(bars.FORWARD)
    assert forward.seconds == found[0].seconds
