"""``python -m bench.gpu.ahead FOLDER``: compile what ``python -m bench --gpu`` needs on a machine without a GPU.

FOLDER is Triton's cache. Where it lies at the same path, with the same Triton, Python and sources, and
TRITON_CACHE_DIR names it, the GPU's time is not spent on compiling. For Hopper GPUs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from . import child, needed, suite
from .needed import Kept

CAPABILITY, WARP = 90, 32
WITHOUT_TESTS = ("hazard", "speed", "tune", "sanitizer")
RECORDED = "FASTKAN_TEST_LAUNCHES"  # a file for what the tests launch, which bench.gpu.launched writes
TEST_SECONDS = 1800.0


class Made(NamedTuple):
    """What became of a build."""

    seconds: float
    failure: str | None


class NoGPU:
    """What Triton asks of a driver to compile, and no more."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, WARP)


def prepare(cache: str) -> None:
    """Once in a process, before Triton is imported."""
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ.pop("TRITON_INTERPRET", None)
    from triton import knobs
    from triton.runtime.driver import driver

    driver.set_active(NoGPU())
    knobs.compilation.store_binary_only = True  # a tenth of the room


def make(kept: Kept) -> Made:
    """Compile one into the cache."""
    module, name = kept.kernel.split(":")
    kernel = getattr(importlib.import_module(module), name)
    start = time.perf_counter()
    failure = None
    try:
        options = {"num_warps": kept.warps, "num_stages": kept.stages}
        kernel.warmup(**kept.arguments, **kept.constants, **options, grid=(1,))
    except Exception as problem:  # the others are still made; on the GPU this one fails too, and is told
        failure = f"{kept.kernel}: {type(problem).__name__}: {problem}"[:300]
    return Made(time.perf_counter() - start, failure)


def of_tests(jobs: int) -> dict[tuple, Kept]:
    """What the tests launch, seen by running them in the interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", *map(str, suite.test_files()), "-q", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist") and jobs > 1:
            command += ["-n", str(jobs)]
        environment = {RECORDED: folder, suite.DEVICE: "cpu", "TRITON_INTERPRET": "1"}
        code, output = child.run([*command, "-p", "bench.gpu.launched"], TEST_SECONDS, **environment)
        if code != 0:
            print(f"the tests returned {code}: {(output.splitlines() or ['no output'])[-1]}", flush=True)
        found: dict[tuple, Kept] = {}
        for path in Path(folder).iterdir():
            found |= {kept.key: kept for kept in pickle.loads(path.read_bytes())}
    return found


def main(argv: list[str] | None = None) -> int:
    """Compile all. Returns 1 if nothing could be compiled."""
    arguments = argparse.ArgumentParser("python -m bench.gpu.ahead", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("folder", type=Path, metavar="FOLDER", help="its path must be the same on the GPU's machine")
    stages = ("tests", *WITHOUT_TESTS)
    arguments.add_argument("--only", nargs="+", choices=stages, default=stages, metavar="STAGE")
    arguments.add_argument("--cases", nargs="+", metavar="PART", help="only what has such a part in its name")
    arguments.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = arguments.parse_args(argv)
    found: dict[tuple, Kept] = {}
    for stage in options.only:
        new = of_tests(options.jobs) if stage == "tests" else needed.of_stage(stage, options.cases)[1]
        print(f"{stage}: {len(new)} builds, {len(new.keys() - found.keys())} of them new", flush=True)
        found |= new
    made = _all(list(found.values()), options.folder.resolve(), options.jobs)
    failures = [one.failure for one in made if one.failure]
    for failure in failures[:10]:
        print(failure)
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    spent = sum(one.seconds for one in made)
    print(
        f"{len(made)} builds, {len(failures)} failed, {spent / max(1, len(made)):.2f} s each, {size / 2**20:.0f} MiB "
        f"in {options.folder.resolve()}"
    )
    return int(len(failures) == len(made))


def _all(wanted: list[Kept], folder: Path, jobs: int) -> list[Made]:
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, jobs), context, prepare, (str(folder),)) as pool:
        return list(_told(pool.map(make, wanted), len(wanted)))


def _told(made: Iterable[Made], count: int) -> Iterable[Made]:
    for number, one in enumerate(made, 1):
        if number % 100 == 0:
            print(f"{number} of {count}", flush=True)
        yield one


if __name__ == "__main__":
    sys.exit(main())
