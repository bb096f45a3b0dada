"""``python -m bench.gpu.touch``: each kernel once, on small odd sizes, checked; what compute-sanitizer runs."""

from __future__ import annotations

import argparse
import sys

import torch

from .hazard import attempt
from .place import Place
from .rows import CONTRACTIONS
from .trials import TINY, Trial
from .ways import WAYS, NoSuchWay


def touched(place: Place) -> list[Trial]:
    """Every contraction, form and way, in two dtypes."""
    found = []
    for setting in ("bfloat16" if place.is_gpu else "float16", "highest"):
        for form in ("uniform", "adapted"):
            for way in WAYS:
                for name, derivative in CONTRACTIONS:
                    if name in WAYS[way]:
                        found.append(Trial("random", name, derivative, TINY, setting, form, way, 5, name != "H"))
    return found


def main(argv: list[str] | None = None) -> int:
    """Run all; 1 if one is wrong."""
    arguments = argparse.ArgumentParser("python -m bench.gpu.touch", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--backend", default="triton")
    options = arguments.parse_args(argv)
    place = Place(torch.device(options.device), options.backend)
    wrong = ran = 0
    for trial in touched(place):
        try:
            failure = attempt(trial, place, repeats=1)["failure"]
        except NoSuchWay:
            continue
        ran += 1
        if failure is not None:
            wrong += 1
            print(failure, flush=True)
    print(f"touched {ran} kernels, {wrong} wrong", flush=True)
    return int(wrong > 0 or ran == 0)


if __name__ == "__main__":
    sys.exit(main())
