"""``python -m bench.gpu.ahead FOLDER``: compile the kernels that ``python -m bench.gpu`` needs, without a GPU.

The result is a cache of Triton for Hopper GPUs in FOLDER. On the machine with the GPU, set ``TRITON_CACHE_DIR=FOLDER``.
Triton finds the kernels in the cache if Triton itself and the sources of the kernels are the same on both machines. The
file ``triton_key.txt`` identifies the Triton that has compiled the kernels. ``python -m bench.codegen --builds
bench.gpu.ahead`` checks the machine code of the same kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from ..codegen.compile import each, listed, warmed_up
from .bars import CONTRACTIONS, LAYERS
from .speed import setting

if TYPE_CHECKING:
    from fastkan_kernels.backends.triton.builds import Build

CAPABILITY = 90
KEY = "triton_key.txt"


def builds(capability: int) -> list[Build]:
    """Return the kernels of all candidates for tuning the layers of the bars."""
    from fastkan_kernels.backends.triton.builds import builds_of, configs_of

    found: dict[str, Build] = {}
    for row in LAYERS:
        for name in CONTRACTIONS:
            wanted = setting(row, name)
            for config in configs_of(wanted, capability, every=True):
                found.update((build.name, build) for build in builds_of(wanted, capability, config))
    return list(found.values())


def sample() -> list[Build]:
    """Return the kernels for the smallest layer of the bars."""
    row = LAYERS[-1]
    return [build for build in builds(CAPABILITY) if f" {row.rows}x{row.inputs}x{row.outputs} " in build.name]


def triton_key() -> str:
    """Return a digest of Triton's own files, which is a part of each key in Triton's cache."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def settle(folder: Path) -> None:
    """Adapt the absolute paths in the files of a cache to the folder in which the cache now lies."""
    for group in folder.glob("*/__grp__*.json"):
        files = {name: group.parent / name for name in json.loads(group.read_text())["child_paths"]}
        found = {name: str(path.resolve()) for name, path in files.items() if path.exists()}
        group.write_text(json.dumps({"child_paths": found}))


def applies(folder: str | None) -> str:
    """Return a sentence that says whether Triton can use a cache that was compiled ahead, and prepare a usable cache.

    Args:
        folder: the value of TRITON_CACHE_DIR.
    """
    path = Path(folder or "") / KEY
    if folder is None or not path.is_file():
        return "No kernels were compiled ahead: TRITON_CACHE_DIR names no folder of python -m bench.gpu.ahead."
    if path.read_text().strip() == triton_key():
        settle(Path(folder))
        return f"The kernels in {folder} were compiled ahead for this Triton."
    return f"The kernels in {folder} were compiled ahead for another Triton, so all kernels are compiled here."


def made(build: Build) -> str | None:
    """Compile a build into the cache, and return the reason why the compilation failed, or None if it succeeded."""
    try:
        warmed_up(build)
    except Exception as failure:  # an error in one build must not prevent the compilation of the other builds
        return f"{build.name}: {type(failure).__name__}: {failure}"[:300]
    return None


def main(argv: list[str] | None = None) -> int:
    """Compile all kernels. Return 1 if the compilation of a kernel failed, else 0."""
    arguments = argparse.ArgumentParser("python -m bench.gpu.ahead", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("folder", type=Path, metavar="FOLDER")
    arguments.add_argument("--sample", action="store_true", help="only for the smallest layer")
    arguments.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all)"
    )
    options = arguments.parse_args(argv)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(applies(str(folder)), flush=True)
    names = [build.name for build in listed("bench.gpu.ahead", [CAPABILITY], options.sample)]
    coming = each(made, "bench.gpu.ahead", names, folder, options.jobs, sample=options.sample)
    found = dict(track(coming, "compile", len(names), transient=True))
    failures = [failure for failure in found.values() if failure]
    # the removed files are copies of Triton's own code, which make up half of the cache
    for source in folder.glob("*/*.source"):
        source.unlink()
    (folder / KEY).write_text(triton_key() + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(*failures[:10], f"{len(names)} builds, {len(failures)} failed, {size / 2**20:.0f} MiB in {folder}", sep="\n")
    print(f"triton_key {triton_key()}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
