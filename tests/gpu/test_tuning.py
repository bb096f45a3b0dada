"""Which way a contraction takes: rules, tables in their place, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import make_case, no_triton

pytestmark = pytest.mark.skipif(no_triton() is not None, reason=str(no_triton()))
if no_triton() is None:
    from fastkan_kernels.backends.triton import hardware
    from fastkan_kernels.backends.triton.problem import problem
    from fastkan_kernels.backends.triton.tuning import cache, environment, rules, selection, tables
    from fastkan_kernels.backends.triton.tuning.key import key
    from fastkan_kernels.backends.triton.tuning.selection import Config, Key
    from fastkan_kernels.trilinear import Operands


@pytest.fixture(autouse=True)
def no_table() -> Iterator[None]:
    selection.use_table(None)
    yield
    selection.use_table(None)


def key_of_case(rows: int, inputs: int = 3, outputs: int = 4) -> Key:
    o, basis = make_case(rows=rows, inputs=inputs, outputs=outputs, dtype=torch.float32)
    return key(problem("F", o.x, o.knots, Operands(o.v, o.weight, o.base_weight), basis, 0))


def key_of(contraction: str = "F", **changes) -> Key:
    sizes = {"dtype": "bfloat16", "precision": "ieee", "form": "cardinal", "order": 3, "derivative": 0, "base": "silu"}
    shape = {"aligned": True, "rows": 8192, "inputs": 256, "outputs": 256, "spline_count": 8}
    rest = {"multiplied": False, "inputs_by_16": True, "outputs_by_16": True}
    return key_of_case(5)._replace(contraction=contraction, **{**sizes, **shape, **rest, **changes})


def test_a_choice_does_not_know_the_number_of_rows() -> None:
    """But for its power of two: another batch must not change the order of a sum."""
    assert key_of_case(33) == key_of_case(64)
    assert key_of_case(64) != key_of_case(65)
    assert key_of_case(5, inputs=100) != key_of_case(5, inputs=101)
    assert key_of_case(5, inputs=257) == key_of_case(5, inputs=301)
    assert key_of_case(5, inputs=257) != key_of_case(5, inputs=300)  # rows of whole 16 bytes
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
            for config in [selection.choose(k, 80), selection.choose(k, 90), *rules.candidates(k)]:
                tiles = (config.rows, config.columns, config.inner, config.splines, config.warps)
                assert all(tile & (tile - 1) == 0 for tile in tiles), config
                if config.way == "fused":
                    assert min(config.rows, config.columns, config.inner) >= 16, config
                    assert config.rows * config.columns * config.splines <= 256 * 256, config
                assert not (contraction == "G" and config.way == "gather")


def test_large_grids_are_gathered_and_wide_outputs_chunked() -> None:
    assert selection.choose(key_of(), 90).way == "fused"
    assert selection.choose(key_of(spline_count=300), 90).way == "gather"
    assert selection.choose(key_of("G", spline_count=300), 90).way == "fused"
    assert selection.choose(key_of(outputs=1024), 90).way == "chunked"


def test_a_table_takes_the_place_of_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Config("chunked", 32, 64)
    path = tmp_path / "tuned.json"
    tables.write(path, {key_of(): tuned}, environment.metadata())
    assert tables.read(path) == ({key_of(): tuned}, environment.metadata())
    before = selection.choose(key_of("H"), 90)
    selection.use_table(path)
    assert selection.choose(key_of(), 90) == tuned
    assert selection.choose(key_of("H"), 90) == before
    with selection.override("F", Config("gather")):
        assert selection.choose(key_of(), 90) == Config("gather")
    selection.use_table(None)
    assert selection.choose(key_of(), 90) != tuned

    monkeypatch.setenv("FASTKAN_TUNING", str(path))
    selection._loaded.clear()
    selection._forget()
    assert selection.choose(key_of(), 90) == tuned


def test_a_users_table_is_for_its_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs here the other one may lack what the table takes."""
    path, tuned, gpu = tmp_path / "tuned.json", Config("chunked", 32, 64), {"gpu": "one", "capability": "90"}
    here = {**environment.metadata(), **gpu}
    tables.write(path, {key_of(): tuned}, here)
    monkeypatch.setattr(selection, "metadata", lambda: here)
    monkeypatch.setattr(selection, "gpu_name", lambda device: ("one", "other")[device.index])
    selection.use_table(path)
    assert selection.choose(key_of(), 90, torch.device("cuda", 0)) == tuned
    assert selection.choose(key_of(), 80, torch.device("cuda", 1)) == rules.default(key_of(), 80)


def test_the_environments_table_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKAN_TUNING", "/nowhere.json")
    selection._loaded.clear()
    selection._forget()
    with pytest.raises(ValueError, match=r"FASTKAN_TUNING names a table that can't be taken: .*/nowhere.json"):
        selection.choose(key_of(), 90)


def test_a_table_of_another_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    tables.write(path, {}, {**environment.metadata(), "triton": "0.0"})
    with pytest.raises(ValueError, match=r"holds for triton '0.0', and here it is"):
        selection.use_table(path)


def test_where_sums_must_not_change_no_table_is_asked(tmp_path: Path) -> None:
    path, tuned = tmp_path / "tuned.json", Config("chunked", 32, 64)
    tables.write(path, {key_of(): tuned}, environment.metadata())
    selection.use_table(path)
    assert selection.choose(key_of(), 90) == tuned
    asked = key_of(deterministic=True)
    assert selection.choose(asked, 90) == rules.default(asked, 90) != tuned
    assert not key_of_case(5).deterministic
    torch.use_deterministic_algorithms(True)
    try:
        assert key_of_case(5).deterministic
    finally:
        torch.use_deterministic_algorithms(False)
    tables.write(path, {asked: tuned}, environment.metadata())
    with pytest.raises(ValueError, match="for deterministic algorithms is the rules'"):
        selection.use_table(path)


def test_a_refused_table_leaves_the_one_before(tmp_path: Path) -> None:
    path, bad, tuned = tmp_path / "tuned.json", tmp_path / "bad.json", Config("chunked", 32, 64)
    tables.write(path, {key_of(): tuned}, environment.metadata())
    selection.use_table(path)
    tables.write(bad, {key_of("G"): Config("gather")}, environment.metadata())
    with pytest.raises(ValueError, match="a way that G has"):
        selection.use_table(bad)
    assert selection.choose(key_of(), 90) == tuned


def test_descriptors_of_what_they_cannot_address_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    tables.write(path, {key_of(aligned=False): Config("fused", descriptors=True)}, environment.metadata())
    with pytest.raises(ValueError, match="descriptors can't address what is not aligned"):
        selection.use_table(path)


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"schema": 1, "metadata": {}, "entries": []}))
    with pytest.raises(ValueError, match=r"of schema 1, and this version reads 3: .* Tune again"):
        selection.use_table(path)


BAD_KEY = {**key_of()._asdict(), "rows": "8192"} if no_triton() is None else {}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "no json",
        json.dumps({"schema": 3, "metadata": {}, "entries": [{"key": {}}]}),
        json.dumps({"schema": 3, "metadata": [], "entries": []}),
        json.dumps({"schema": 3, "metadata": {}, "entries": [{"key": BAD_KEY, "config": {"way": "fused"}}]}),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a table of tuned choices"):
        selection.use_table(path)


def test_impossible_overrides_are_refused() -> None:
    for contraction, config, message in (
        ("X", Config("fused"), "contraction must be"),
        ("F", Config("sorted"), "a way that F has"),
        ("G", Config("gather"), "a way that G has"),
        ("F", Config("fused", rows=0), "rows must be"),
        ("F", Config("fused", rows=17), "rows must be a power of two"),
        ("F", Config("pipelined"), "rows must be 16 for each of 4 warps or more, got 16 of 4"),
        ("G", Config("pipelined", 16, warps=1), "rows must be 16 for each of 4 warps"),
        ("F", Config("pipelined", 64, 512), "columns must be from 8 to 256"),
        ("F", Config("pipelined", 64, 64, 8), "inner must be at least 16"),
    ):
        with pytest.raises(ValueError, match=message), selection.override(contraction, config):
            pass


# -- shipped tables ----------------------------------------------------------------------------------

H100 = {"gpu": "NVIDIA H100 80GB HBM3", "capability": "90", "triton": "3.7.1", "ptxas": "12.8.93"}
H200 = {**H100, "gpu": "NVIDIA H200"}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of shipped tables, on a GPU that isn't there."""
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "tables")
    monkeypatch.setattr("triton.__version__", "3.7.0")
    monkeypatch.setattr(selection, "gpu_name", lambda device: H100["gpu"])
    tables._shipped.cache_clear()
    yield tmp_path / "tables"
    tables._shipped.cache_clear()


CUDA = torch.device("cuda", 0)


def test_a_shipped_table_of_this_gpu_goes_before_one_of_another(shipped: Path) -> None:
    own, other, rule = Config("chunked", 32), Config("chunked", 64), rules.default(key_of("H"), 90)
    tables.write(shipped / "sm_90-h100.json", {key_of(): own}, H100)
    tables.write(shipped / "sm_90-h200.json", {key_of(): other, key_of("G"): other}, H200)
    assert selection.choose(key_of(), 90, CUDA) == own
    assert selection.choose(key_of("G"), 90, CUDA) == other
    assert selection.choose(key_of("H"), 90, CUDA) == rule
    assert tables.shipped(key_of(), 90, H100["gpu"]) == (own, True)
    assert tables.shipped(key_of("G"), 90, H100["gpu"]) == (other, False)
    assert selection.choose(key_of(), 80, CUDA) == rules.default(key_of(), 80)
    assert selection.choose(key_of(), 90) == rules.default(key_of(), 90)  # without a GPU
    asked = key_of(deterministic=True)
    assert selection.choose(asked, 90, CUDA) == rules.default(asked, 90)


def test_a_users_table_goes_before_shipped_ones(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.write(shipped / "sm_90-h100.json", {key_of(): Config("chunked", 32)}, H100)
    tables.write(tmp_path / "own.json", {key_of(): Config("gather")}, H100)
    monkeypatch.setattr(selection, "metadata", lambda: H100)
    selection.use_table(tmp_path / "own.json")
    assert selection.choose(key_of(), 90, CUDA) == Config("gather")


def test_shipped_tables_hold_for_a_minor_version_of_triton(shipped: Path) -> None:
    tables.write(shipped / "sm_90-h100.json", {key_of(): Config("chunked", 32)}, {**H100, "triton": "3.8.1"})
    assert selection.choose(key_of(), 90, CUDA) == rules.default(key_of(), 90)


def test_a_way_that_this_triton_lacks_is_left_out(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.write(shipped / "sm_90-h100.json", {key_of(): Config("chunked"), key_of("G"): Config("chunked")}, H100)
    monkeypatch.setattr(tables, "ways_of", lambda k, capability: ["fused"] if k.contraction == "F" else ["chunked"])
    assert selection.choose(key_of(), 90, CUDA) == rules.default(key_of(), 90)
    assert selection.choose(key_of("G"), 90, CUDA) == Config("chunked")
    tables.write(tmp_path / "own.json", {key_of(): Config("chunked")}, H100)
    monkeypatch.setattr(selection, "metadata", lambda: H100)
    with pytest.raises(ValueError, match="takes a way that is not supported here, 'chunked'"):
        selection.use_table(tmp_path / "own.json")


def test_shipped_tables_are_read_once(shipped: Path) -> None:
    tables.write(shipped / "sm_90-h100.json", {key_of(): Config("chunked", 32)}, H100)
    assert selection.choose(key_of(), 90, CUDA) == Config("chunked", 32)
    (shipped / "sm_90-h100.json").unlink()
    selection.use_table(None)
    assert selection.choose(key_of(), 90, CUDA) == Config("chunked", 32)


def test_every_table_that_is_shipped_can_be_read_and_was_measured() -> None:
    assert (tables.SHIPPED / "README.md").exists()
    for path in tables.SHIPPED.glob("*.json"):
        table = tables.read(path)
        assert table.entries
        assert path.stem == environment.slug(f"sm_{table.metadata['capability']}", table.metadata["gpu"])
        assert {"triton", "ptxas"} <= table.metadata.keys()


def test_what_was_tuned_becomes_a_shipped_table(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.gpu import ship

    def run(entries: dict[Key, Config], metadata: dict[str, str]) -> int:
        tables.write(tmp_path / "tuned.json", entries, metadata)
        return ship.main([str(tmp_path)])

    tuned, other = {key_of(): Config("chunked", 32)}, {key_of("G"): Config("chunked", 64)}
    assert run(tuned, {"triton": "3.7.1", "ptxas": "12.8.93"}) == 1
    assert "was made without a GPU" in capsys.readouterr().err
    assert run({}, H100) == 1
    assert ship.main([str(tmp_path / "nowhere")]) == 1
    assert not list(shipped.iterdir())
    target = shipped / "sm_90-h100-80gb-hbm3.json"
    assert run(tuned, H100) == run(other, H100) == 0
    assert tables.read(target) == ({**tuned, **other}, H100)
    assert run(other, {**H100, "triton": "3.8.0"}) == 0
    assert "2 of other versions replaced" in capsys.readouterr().out
    assert tables.read(target).entries == other


def test_a_wheel_holds_the_tables_folder(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    root = Path(__file__).resolve().parents[2]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    for name in ("fastkan", "kernels"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastkan_kernels/backends/triton/tuning/tables/README.md" in names
    assert "fastkan_kernels/backends/triton/tuning/selection.py" in names


# -- where what was tuned here is kept ----------------------------------------------------------------


def test_a_file_for_each_gpu_versions_and_state_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"gpu": "NVIDIA H100 80GB HBM3", "capability": "90", "triton": "3.7.1", "ptxas": "12.8.93"}
    name = cache.path_of(metadata).name
    assert name == f"sm_90-h100-80gb-hbm3-triton-3.7.1-ptxas-12.8.93-{cache.source_digest()}.json"
    others = [{**metadata, field: "0.0"} for field in metadata]
    assert len({name, *(cache.path_of(other).name for other in others)}) == 5
    monkeypatch.delenv("FASTKAN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert cache.folder() == Path("/some/where/fastkan")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/some")
    assert cache.folder() == Path("/home/some/.cache/fastkan")


def test_the_digest_is_of_the_kernels_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(Path(hardware.__file__).parent, tmp_path / "triton"))
    monkeypatch.setattr(hardware, "__file__", str(copy / "hardware.py"))
    digest = cache.source_digest.__wrapped__
    before = digest()
    with (copy / "kernels" / "spline.py").open("a") as source:
        source.write("# changed\n")
    assert digest() != before


def test_the_home_folder_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/some")
    monkeypatch.setenv("FASTKAN_CACHE", "~/of fastkan")
    assert cache.folder() == Path("/home/some/of fastkan")
