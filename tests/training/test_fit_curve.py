"""The curve of fits: the command that measures it, and a bound on its slope.

Where a size grows by 1.3, an evaluation of a fit's objective and its gradient takes at most 2 times as long.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.records import read
from bench.workflow import curve
from bench.workflow.fits import DEFAULT, EFFICIENT, FASTKAN, PYKAN, Fits, TooSlow, evaluation
from bench.workflow.points import BASE, CANCER, LAMB, POINTS, Point, chosen
from fastkan import KAN

SIZE_STEP, TIME_STEP = 1.3, 2.0
ROUNDS, CALLS = 3, 3
LONG = 0.02  # seconds of a call after which no other follows in the same round, since its caches are cold anyway
ATTEMPTS = 10  # measurements of a pair of sizes before it counts as uneven


def sizes(least: int, most: int) -> list[int]:
    """Whole numbers, each at most 1.3 times the one before, or one more."""
    found = [least]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, math.floor(found[-1] * SIZE_STEP))))
    return found


def allowed(small: int, large: int) -> float:
    """The growth in time that factors of 1.3 in size come to."""
    return TIME_STEP ** max(1.0, math.log(large / small) / math.log(SIZE_STEP))


def least_seconds(calls: list[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Least CPU seconds of each call, measured in turns."""
    least = [math.inf] * len(calls)
    for _ in range(rounds):
        for place, call in enumerate(calls):
            for _ in range(CALLS):
                start = time.process_time()
                call()
                taken = time.process_time() - start
                least[place] = min(least[place], taken)
                if taken > LONG:
                    break
    return least


def uneven(values: list[int], make: Callable[[int], Callable[[], object]]) -> list[str]:
    """Pairs of neighbouring sizes whose times differ by more than is allowed, in each of several measurements."""
    calls = [make(value) for value in values]
    least = least_seconds(calls)
    found = []
    for place in range(1, len(values)):
        bound = allowed(values[place - 1], values[place])
        pair = least[place - 1 : place + 1]
        for _ in range(ATTEMPTS):
            if pair[1] <= bound * pair[0]:
                break
            pair = [min(old, new) for old, new in zip(pair, least_seconds(calls[place - 1 : place + 1]))]
        else:
            found.append(
                f"from {values[place - 1]} to {values[place]}: {pair[0] * 1e3:.2f} to {pair[1] * 1e3:.2f} ms, "
                f"{pair[1] / pair[0]:.1f} times, allowed {bound:.1f}"
            )
    return found


ROWS = BASE._replace(widths=(2, 5, 1))
AXES: dict[str, tuple[Callable[[int], Point], list[int]]] = {
    "rows": (lambda n: ROWS._replace(rows=n), sizes(100, 100_000)),
    "rows, uniform": (lambda n: ROWS._replace(rows=n, adapted=False), sizes(100, 100_000)),
    "rows, [8, 5, 1]": (lambda n: BASE._replace(rows=n), sizes(100, 10_000)),
    "rows, [2, 5, 5, 1]": (lambda n: BASE._replace(rows=n, widths=(2, 5, 5, 1)), sizes(100, 10_000)),
    "rows, penalty": (lambda n: ROWS._replace(rows=n, lamb=LAMB), sizes(100, 10_000)),
    "rows, cross entropy": (
        lambda n: ROWS._replace(rows=n, widths=(2, 5, 2), loss="cross entropy"),
        sizes(100, 10_000),
    ),
    "grid": (lambda n: ROWS._replace(grid=n), sizes(3, 200)),
    "grid, uniform": (lambda n: ROWS._replace(grid=n, adapted=False), sizes(3, 200)),
    "grid, penalty": (lambda n: ROWS._replace(grid=n, lamb=LAMB), sizes(3, 200)),
    "columns": (lambda n: BASE._replace(widths=(n, 5, 1)), sizes(2, 100)),
    "columns, uniform": (lambda n: BASE._replace(widths=(n, 5, 1), adapted=False), sizes(2, 100)),
    "hidden width": (lambda n: BASE._replace(widths=(8, n, 1)), sizes(1, 64)),
    "hidden width, uniform": (lambda n: BASE._replace(widths=(8, n, 1), adapted=False), sizes(1, 64)),
    "two hidden widths": (lambda n: BASE._replace(widths=(2, n, n, 1)), sizes(1, 32)),
    "depth": (lambda n: BASE._replace(widths=(2, *[5] * (n - 1), 1)), sizes(2, 5)),
}


@pytest.mark.parametrize("axis", AXES)
def test_time_grows_evenly_with_size(axis: str) -> None:
    point, values = AXES[axis]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the seconds of waiting threads would count
    try:
        found = uneven(values, lambda value: evaluation(point(value)))
    finally:
        torch.set_num_threads(threads)
    assert not found, "\n".join(found)


def test_a_jump_in_time_is_found() -> None:
    def make(value: int) -> Callable[[], object]:
        seconds = 1e-5 * value * (5 if value > 20 else 1)

        def call() -> None:
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        return call

    (found,) = uneven(sizes(10, 40), make)
    assert found.startswith("from 16 to 20:") or found.startswith("from 20 to 26:")
    assert uneven(sizes(22, 40), make) == []


def test_sizes_are_dense_and_reach_both_ends() -> None:
    found = sizes(3, 200)
    assert (found[0], found[-1]) == (3, 200)
    assert all(large <= max(small + 1, SIZE_STEP * small) for small, large in itertools.pairwise(found))
    assert allowed(1, 2) == pytest.approx(2 ** (math.log(2) / math.log(1.3)))
    assert allowed(100, 101) == 2


# -- the command ----------------------------------------------------------------------------------------

SMALL = Point("small", (2, 3, 1), 40, 3, steps=2)
TASKS = {
    "L-BFGS": SMALL,
    "Adam": SMALL._replace(opt="Adam"),
    "cross entropy": SMALL._replace(loss="cross entropy", widths=(2, 3, 2)),
    "penalty": SMALL._replace(lamb=LAMB, adapted=False),
    "table": CANCER._replace(opt="Adam", steps=2),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_point_is_measured_by_every_package_that_can(task: str) -> None:
    pytest.importorskip("kan")
    point = TASKS[task]
    results = curve.measure(point, budget=0.0, limit=60.0, fastkan_only=False)
    seconds = {result["contender"]: result["seconds"] for result in results}
    others = {PYKAN, DEFAULT} if point.lamb else {PYKAN, EFFICIENT}
    assert [result["note"] for result in results] == [None] * len(results)
    assert set(seconds) == {FASTKAN, *others}
    assert set(results[0]["ratios"]) == others
    for name in others:
        median, _, _, rounds = results[0]["ratios"][name]
        assert rounds == 1
        assert median == pytest.approx(seconds[FASTKAN][0] / seconds[name][0])


def test_all_fits_learn_the_same_data_in_as_many_steps() -> None:
    pytest.importorskip("kan")
    point = SMALL._replace(rows=200, steps=3)
    fits = Fits(point, limit=60.0)
    for name in (FASTKAN, PYKAN):
        record = fits.fits[name](3)()
        assert len(record["train_loss"]) == len(record["test_loss"]) == 3
        assert float(record["train_loss"][-1]) < 0.7 * fits.dataset["train_label"].std()
    losses = fits.fits[EFFICIENT](3)()
    assert len(losses) == 6  # of the training rows before each step, and of the test rows after it
    assert losses[-2] ** 0.5 < 0.7 * fits.dataset["train_label"].std()


def test_a_rival_that_is_too_slow_is_left_out_with_a_word() -> None:
    pytest.importorskip("kan")
    with pytest.raises(TooSlow):
        Fits(SMALL, limit=0.0).seconds(PYKAN)
    ours, *others = curve.measure(SMALL, budget=0.0, limit=0.0, fastkan_only=False)
    assert ours["seconds"] is not None
    assert ours["ratios"] == {}
    notes = {result["contender"]: result["note"] for result in others if result["seconds"] is None}
    assert notes == dict.fromkeys((PYKAN, EFFICIENT), "a step takes more than 0 s")


def test_an_evaluation_is_that_of_the_fit() -> None:
    for point in (SMALL, SMALL._replace(lamb=LAMB), TASKS["cross entropy"]):
        data = point.dataset()
        model = KAN(width=list(point.widths), grid=3, k=3, seed=0)
        with torch.no_grad():
            model.update_grid_from_samples(data["train_input"])
            loss = point.options()["loss_fn"] or torch.nn.functional.mse_loss
            start = loss(model(data["train_input"]), data["train_label"]).item()
        value = evaluation(point)()
        assert value > start if point.lamb else value == pytest.approx(start, rel=1e-5)


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "curve.json"
    threads = torch.get_num_threads()
    try:
        arguments = ["--points", "8-5-1, 100 rows", "--budget", "0", "--fastkan-only", "--json", str(written)]
        assert curve.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    (point,) = read(written).results
    assert (point["rows"], point["widths"], point["ratios"]) == (100, [8, 5, 1], {})
    assert f"{point['seconds'][0] * 1e3:.3g}" in capsys.readouterr().out


def test_points_are_chosen_by_axis_and_name() -> None:
    assert len({point.name for point in POINTS}) == len(POINTS)
    assert [point.grid for point in chosen(["grid"], quick=False)] == [3, 10, 19, 20, 50, 100, 200]
    assert {point.table for point in chosen(["breast_cancer"], quick=False)} == {"breast_cancer"}
    assert 3 < len(chosen(None, quick=True)) < 10
    with pytest.raises(ValueError, match="'nowhere' fits none"):
        chosen(["nowhere"], quick=False)


def test_ratios_are_summed_up() -> None:
    found = [
        {"case": str(value), "ratios": {PYKAN: [value, value, value, 1]} if value else {}}
        for value in (0.1, 0.4, 0.2, 0)
    ]
    assert curve.summary(found) == ["fastkan / pykan at 3 points: 0.200 in the median, 0.40 at worst (0.4)"]
