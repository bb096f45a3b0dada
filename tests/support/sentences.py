"""Draw sentences of docstrings and comments at random, to be read by somebody who has not written them.

python tests/support/sentences.py --seed 14 --count 100 fastkan kernels
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
DIRECTIVE = re.compile(r"#\s*(fmt|noqa|type|pragma)\b")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """The line and the text of every docstring and every block of comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED):
            text = ast.get_docstring(node)
            if text:
                prose = re.split(r"^\s*Examples?:\s*$|^\s*>>>", text, maxsplit=1, flags=re.MULTILINE)[0]
                yield node.body[0].lineno, prose
    last, block, first = -2, [], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string):
            if token.start[0] != last + 1 and block:
                yield first, " ".join(block)
                block = []
            first = first if block else token.start[0]
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    if block:
        yield first, " ".join(block)


def sentences(folders: list[Path]) -> list[str]:
    """All sentences of three words or more, each with its place."""
    found = []
    for path in sorted(file for folder in folders for file in folder.rglob("*.py")):
        for line, text in texts(path.read_text(encoding="utf-8")):
            for part in re.split(r"\n\s*\n|\n(?=\s*[\w, *]+:\s)", text):
                for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`(])", " ".join(part.split())):
                    if len(re.findall(r"[A-Za-z]{2,}", sentence)) >= 3:
                        found.append(f"{path}:{line}: {sentence}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    every = sentences(options.folders)
    print(f"{options.count} of {len(every)}")
    for number, sentence in enumerate(random.Random(options.seed).sample(every, options.count), 1):
        print(f"{number}. {sentence}")


if __name__ == "__main__":
    main()
