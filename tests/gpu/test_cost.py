"""The predictions of the cost model and the choices that the rules derive from them."""

import itertools
import json
import re
import statistics
from pathlib import Path

import pytest

from fastkan_kernels.backends.triton import cost, hardware, rules
from fastkan_kernels.backends.triton.config import Config, check
from fastkan_kernels.backends.triton.cost import GPUS, LAUNCH, SLOTS, Work
from fastkan_kernels.backends.triton.key import Key

CODEGEN = Path(__file__).parents[2] / "bench" / "results" / "codegen.json"
WIDE, MANY, FINE, TINY = (8192, 1024, 1024, 5), (65536, 64, 64, 5), (8192, 256, 256, 256), (1000, 2, 5, 5)
PRECISIONS = {"bfloat16": "ieee", "tf32": "tf32", "highest": "tf32x3", "float64": "ieee"}


def key_of(contraction, rows, inputs, outputs, grid, dtype="bfloat16", form="cardinal", order=3):
    name = "float32" if dtype in ("tf32", "highest") else dtype
    return Key(
        contraction, name, PRECISIONS[dtype], form, order, int(contraction == "H"), "silu", False, True, True, rows,
        inputs, outputs, inputs % 16 == 0, outputs % 16 == 0, grid + order, False,
    )  # fmt: skip


def chosen(*arguments, capability=90, **options):
    return rules.default(key_of(*arguments, **options), capability)


@pytest.mark.parametrize(("programs", "clocks"), [(1, 110), (132, 110), (133, 170), (264, 170), (265, 280)])
def test_a_wave_takes_as_long_as_its_busiest_unit(programs, clocks):
    """Two programs share a multiprocessor, so the third program of a multiprocessor starts a new wave."""
    work = Work(programs, 2, tensor=80, issue=85, l2=10, idle=25, overlapped=True, moved=0)
    assert work.seconds(GPUS[90]._replace(processors=132, hertz=1.0)) == pytest.approx(clocks + LAUNCH)


def test_features_and_products_add_up_unless_they_overlap():
    gpu = GPUS[90]._replace(hertz=1.0)
    apart = Work(1, 1, tensor=80, issue=50, l2=90, idle=5, overlapped=False, moved=0)
    assert apart.seconds(gpu) == pytest.approx(90 + 50 + 5 + LAUNCH)
    assert apart._replace(overlapped=True).seconds(gpu) == pytest.approx(90 + 5 + LAUNCH)


def test_no_launch_is_faster_than_memory():
    work = Work(1, 1, 1, 1, 1, 0, overlapped=True, moved=3e9)
    assert work.seconds(GPUS[90]) == pytest.approx(3e9 / GPUS[90].memory + LAUNCH)


@pytest.mark.parametrize(("contraction", "way", "form"), [k for k in SLOTS if k[0] != "H"])
def test_instructions_of_a_feature_are_those_of_the_machine_code(contraction, way, form):
    """The report of ``python -m bench.codegen`` has the counts of cubic splines in bfloat16 on Hopper GPUs."""
    found = []
    for build in json.loads(CODEGEN.read_text())["builds"]:
        if re.match(rf"{contraction} {way} {form} k3 d0 \w+ bf16 ", build["name"]) and "sm90" in build["name"]:
            found.append(build["per_element"])
    usable = [count for count in found if count is not None]
    assert SLOTS[contraction, way, form] == pytest.approx(statistics.median(usable), rel=0.3)


@pytest.mark.parametrize("size", [WIDE, MANY, FINE, TINY, (7, 5, 3, 20)])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("capability", GPUS)
def test_no_candidate_is_predicted_to_be_clearly_faster_than_the_default(size, dtype, capability):
    for contraction in "FGH":
        k = key_of(contraction, *size, dtype=dtype)
        default = cost.seconds(k, rules.default(k, capability), capability)
        times = {c: cost.seconds(k, c, capability) for c in rules.candidates(k, capability)}
        assert min(times.values()) >= default - cost.UNCERTAIN
        assert default == min(time for c, time in times.items() if c.way == rules.default(k, capability).way)
        assert min(times.values()) >= LAUNCH


@pytest.mark.parametrize(("way", "contraction"), [("fused", c) for c in "FGH"] + [("chunked", "F"), ("gather", "H")])
def test_more_work_takes_no_less_time(way, contraction, monkeypatch):
    monkeypatch.setattr(cost, "parts", lambda k, c, gpu: (1, 1))  # with more parts, a sum over more rows may be faster
    config = Config(way, 64, 32 if contraction == "H" else 64, 32, 2 if contraction == "H" else 1, 4, 3, True)
    for rows, width in itertools.product((64, 1000, 20000), (16, 100, 700)):
        times = [
            cost.seconds(key_of(contraction, rows * n, width * i, width * o, 5), config, 90)
            for n, i, o in ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (4, 2, 2))
        ]
        assert times == sorted(times)


def test_two_byte_products_overlap_with_features_on_hopper():
    for contraction in "FG":
        assert chosen(contraction, *WIDE).way == "pipelined"
        assert chosen(contraction, *WIDE, capability=80).way == "fused"
        assert chosen(contraction, *WIDE, dtype="tf32").way != "pipelined"


def test_a_tile_of_the_input_gradient_has_eight_splines_on_hopper():
    """Tiles of 256 columns need the fewest bytes from the L2 cache for each matrix product."""
    config = chosen("H", *WIDE)
    assert (config.columns * config.splines, config.splines) == (256, 8)


@pytest.mark.parametrize("contraction", "FGH")
def test_float32_products_use_tensor_cores(contraction):
    """PyTorch's products in full float32 do not use tensor cores, so the chunked implementation is slower."""
    assert chosen(contraction, *WIDE, dtype="highest").way == "fused"


@pytest.mark.parametrize("contraction", "FH")
def test_large_grids_in_float32_read_only_the_weights_of_active_splines(contraction):
    assert chosen(contraction, *FINE, dtype="highest").way == "gather"
    assert chosen(contraction, *WIDE, dtype="highest").way == "fused"


@pytest.fixture
def with_gluon(monkeypatch):
    """Triton's interpreter does not run kernels in Gluon, among them those of the banded implementation."""
    monkeypatch.setattr(hardware, "INTERPRETED", False)
    monkeypatch.setattr(rules, "gluon_available", lambda: True)


@pytest.mark.parametrize(
    ("name", "config"),
    [("F", Config("banded", 512, 32, 32, 1, 16, 3)), ("H", Config("banded", 256, 128, 128, 1, 16, 2))],
)
def test_large_grids_in_two_bytes_have_about_one_program_for_each_multiprocessor(name, config, with_gluon):
    assert chosen(name, *FINE) == config
    check(name, config)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"order": 4},
        {"aligned": False},
        {"spline_count": 2000},  # two slots of weights would need more than 227 KiB
        {"rows": 1 << 24},
    ],
)
def test_what_the_banded_kernels_cannot_compute_is_left_to_others(change, with_gluon):
    assert rules.default(key_of("H", *FINE), 90).way == "banded"
    assert rules.default(key_of("H", *FINE)._replace(**change), 90).way != "banded"


def test_no_float64_kernel_keeps_the_active_splines_in_registers():
    for contraction in "FGH":
        assert chosen(contraction, *WIDE, dtype="float64", form="local").way != "fused"


def test_an_unknown_gpu_has_the_rates_of_the_next_older_one():
    assert cost.gpu_of(87) == GPUS[86]
    assert cost.gpu_of(103) == GPUS[100]
    assert cost.gpu_of(75) == GPUS[80]


@pytest.mark.parametrize(
    ("size", "split"), [(WIDE, False), (FINE, False), (MANY, True), (TINY, False), ((1, 1, 1, 5), False)], ids=str
)
@pytest.mark.parametrize("way", ["fused", "pipelined"])
def test_rows_are_split_only_where_it_fills_the_gpu(size, split, way):
    """For the widest layer, two parts would take another 150 MB of memory."""
    tile = 128 if size[1] > 64 else 64
    config = Config(way, tile, tile, 64, 1, 8 if way == "fused" else tile // 16, 3, True)
    k, gpu = key_of("G", *size), GPUS[90]
    parts, base_parts = cost.parts(k, config, gpu)
    assert (parts > 1) == split
    assert way == "pipelined" or parts == base_parts
    for count, rows in zip((parts, base_parts), cost.part_rows(k, config, gpu)):
        assert rows % 64 == 0
        assert -(-size[0] // rows) <= count


def test_short_programs_fill_the_last_wave():
    """In the second wave, one multiprocessor runs a program, and 131 run two programs of half the length each."""
    gpu = GPUS[90]._replace(hertz=1.0)
    work = Work(133, 1, tensor=100, issue=0, l2=0, idle=0, overlapped=True, moved=0, short_share=0.5)
    assert work._replace(short_programs=262).seconds(gpu) == work.seconds(gpu)
    assert work._replace(short_programs=263).seconds(gpu) == pytest.approx(work.seconds(gpu) + 50)


def test_partial_sums_take_less_than_a_tenth_of_a_wide_layer():
    """The bar counts the memory of parameters, inputs, outputs and their gradients."""
    k = key_of("G", *WIDE)
    rows, inputs, outputs, grid = WIDE
    held = 2 * 2 * ((grid + 4) * inputs * outputs + rows * (inputs + outputs))
    assert cost.extra_bytes(k, rules.default(k, 90), GPUS[90]) <= 0.1 * held
