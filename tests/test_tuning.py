"""Which way a contraction takes: rules, tables in their place, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import make_case, no_triton

pytestmark = pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))
if no_triton() is None:
    from fastkan_kernels.trilinear import Slots
    from fastkan_kernels.triton import rules, stamp, tables, tuning
    from fastkan_kernels.triton.key import key
    from fastkan_kernels.triton.problem import problem
    from fastkan_kernels.triton.tuning import Config, Key


@pytest.fixture(autouse=True)
def no_table() -> Iterator[None]:
    tuning.use_table(None)
    yield
    tuning.use_table(None)


def key_of(contraction: str = "F", **changes) -> Key:
    sizes = {"dtype": "bfloat16", "precision": "ieee", "form": "cardinal", "order": 3, "derivative": 0, "base": "silu"}
    shape = {"aligned": True, "rows": 8192, "inputs": 256, "outputs": 256, "spline_count": 8}
    rest = {"multiplied": False, "inputs_by_16": True, "outputs_by_16": True, "deterministic": False}
    return Key(contraction, **{**sizes, **shape, **rest, **changes})


def key_of_case(rows: int, inputs: int = 3, outputs: int = 4) -> Key:
    o, basis = make_case(rows=rows, inputs=inputs, outputs=outputs, dtype=torch.float32)
    return key(problem("F", o.x, o.knots, Slots(o.v, o.weight, o.base_weight), basis, 0))


def test_a_choice_does_not_know_the_number_of_rows() -> None:
    """But for its power of two: another batch must not change the order of a sum."""
    assert key_of_case(33) == key_of_case(64)
    assert key_of_case(64) != key_of_case(65)
    assert key_of_case(5, inputs=100) != key_of_case(5, inputs=101)
    assert key_of_case(5, inputs=257) == key_of_case(5, inputs=300)
    assert key_of_case(5, inputs=300) != key_of_case(5, inputs=512)  # which 16 divides
    assert key_of_case(5, outputs=300) != key_of_case(5, outputs=512)


@pytest.mark.parametrize("contraction", "FGH")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("form", ["cardinal", "local"])
def test_every_choice_is_one_that_can_run(contraction: str, dtype: str, form: str) -> None:
    """Powers of two, at least what a product on tensor cores takes, and no way that a contraction lacks."""
    for size in (1, 5, 64, 1024):
        for count in (2, 8, 300):
            k = key_of(contraction, dtype=dtype, form=form, rows=size, inputs=size, outputs=size, spline_count=count)
            for config in [tuning.choose(k, 80), tuning.choose(k, 90), *rules.candidates(k)]:
                tiles = (config.rows, config.columns, config.inner, config.splines, config.warps)
                assert all(tile & (tile - 1) == 0 for tile in tiles), config
                if config.way == "fused":
                    assert min(config.rows, config.columns, config.inner) >= 16, config
                    assert config.rows * config.columns * config.splines <= 256 * 256, config
                assert not (contraction == "G" and config.way == "gather")


def test_large_grids_are_gathered_and_wide_outputs_chunked() -> None:
    assert tuning.choose(key_of(), 90).way == "fused"
    assert tuning.choose(key_of(spline_count=300), 90).way == "gather"
    assert tuning.choose(key_of("G", spline_count=300), 90).way == "fused"
    assert tuning.choose(key_of(outputs=1024), 90).way == "chunked"


def test_a_table_takes_the_place_of_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Config("chunked", 32, 64)
    path = tmp_path / "tuned.json"
    tables.write(path, {key_of(): tuned}, stamp.about())
    assert tables.read(path) == ({key_of(): tuned}, stamp.about())
    before = tuning.choose(key_of("H"), 90)
    tuning.use_table(path)
    assert tuning.choose(key_of(), 90) == tuned
    assert tuning.choose(key_of("H"), 90) == before
    with tuning.override("F", Config("gather")):
        assert tuning.choose(key_of(), 90) == Config("gather")
    tuning.use_table(None)
    assert tuning.choose(key_of(), 90) != tuned

    monkeypatch.setenv("FASTKAN_TUNING", str(path))
    tuning._loaded.clear()
    tuning._forget()
    assert tuning.choose(key_of(), 90) == tuned


def test_a_table_of_another_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    tables.write(path, {}, {**stamp.about(), "triton": "0.0"})
    with pytest.raises(ValueError, match=r"holds for triton '0.0', and here it is"):
        tuning.use_table(path)


def test_where_sums_must_not_change_no_table_is_asked(tmp_path: Path) -> None:
    path, tuned = tmp_path / "tuned.json", Config("chunked", 32, 64)
    tables.write(path, {key_of(): tuned}, stamp.about())
    tuning.use_table(path)
    assert tuning.choose(key_of(), 90) == tuned
    asked = key_of(deterministic=True)
    assert tuning.choose(asked, 90) == rules.default(asked, 90) != tuned
    assert not key_of_case(5).deterministic
    torch.use_deterministic_algorithms(True)
    try:
        assert key_of_case(5).deterministic
    finally:
        torch.use_deterministic_algorithms(False)
    tables.write(path, {asked: tuned}, stamp.about())
    with pytest.raises(ValueError, match="for deterministic algorithms is the rules'"):
        tuning.use_table(path)


def test_a_refused_table_leaves_the_one_before(tmp_path: Path) -> None:
    path, bad, tuned = tmp_path / "tuned.json", tmp_path / "bad.json", Config("chunked", 32, 64)
    tables.write(path, {key_of(): tuned}, stamp.about())
    tuning.use_table(path)
    tables.write(bad, {key_of("G"): Config("gather")}, stamp.about())
    with pytest.raises(ValueError, match="a way that G has"):
        tuning.use_table(bad)
    assert tuning.choose(key_of(), 90) == tuned


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"schema": 1, "about": {}, "entries": []}))
    with pytest.raises(ValueError, match=r"of schema 1, and this version reads 2: .* Tune again"):
        tuning.use_table(path)


BAD_KEY = {**key_of()._asdict(), "rows": "8192"} if no_triton() is None else {}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "no json",
        json.dumps({"schema": 2, "about": {}, "entries": [{"key": {}}]}),
        json.dumps({"schema": 2, "about": [], "entries": []}),
        json.dumps({"schema": 2, "about": {}, "entries": [{"key": BAD_KEY, "config": {"way": "fused"}}]}),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a table of tuned choices"):
        tuning.use_table(path)


def test_impossible_overrides_are_refused() -> None:
    for contraction, config, message in (
        ("X", Config("fused"), "contraction must be"),
        ("F", Config("banded"), "a way that F has"),
        ("G", Config("gather"), "a way that G has"),
        ("F", Config("fused", rows=0), "rows must be"),
        ("F", Config("fused", rows=17), "rows must be a power of two"),
    ):
        with pytest.raises(ValueError, match=message), tuning.override(contraction, config):
            pass
