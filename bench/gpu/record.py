"""What a stage finds: written to its file after each finding, so that nothing is lost when time is up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

SCHEMA = 1


class Named(Protocol):
    """Something to do; its result has its name."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


class Record:
    """Results, failures and what was left out, with the clock that says when to stop.

    Args:
        path: the JSON file.
        stage: its name.
        about: machine and versions.
        settings: what the stage was asked.
        seconds: its time, from now.
        say: told of each result in a line.
        before: names of results that earlier runs have.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        about: dict,
        settings: dict,
        seconds: float,
        say: Callable[[str], None],
        before: Collection[str] = (),
    ) -> None:
        self.path, self.stage, self.about, self.settings = path, stage, about, settings
        self.results: list[dict] = []
        self.failures: list[str] = []
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self.extras: dict[str, Any] = {}  # what the stage says beside its results
        self.before = frozenset(before)
        self._pending: dict[str, None] = {}
        self._say = say
        self._seconds = seconds
        self._began = time.monotonic()
        self.save()

    def left(self) -> float:
        """Seconds; below 0 when time is up."""
        return self._seconds - (time.monotonic() - self._began)

    def wanted(self, items: Iterable[Item]) -> list[Item]:
        """Those of which no earlier run has a result. Until they have one they count as left out, so that a stage
        that is stopped has said so."""
        all_of_them = list(items)
        found = [item for item in all_of_them if item.name not in self.before]
        self._pending.update(dict.fromkeys(item.name for item in found))
        if all_of_them and not found:
            self.note("nothing is left to do: earlier runs have it all")
        self.save()
        return found

    def add(self, result: dict, line: str, failure: str | None = None) -> None:
        """Enter a result, and why it is a failure if it is one."""
        self.results.append(result)
        self._pending.pop(result.get("name", ""), None)
        self._say(line if failure is None else f"FAILED {failure}")
        if failure is not None:
            self.failures.append(failure)
        self.save()

    def fail(self, why: str) -> None:
        """A failure that belongs to no result."""
        self.failures.append(why)
        self._say(f"FAILED {why}")
        self.save()

    def leave_out(self, name: str, why: str | None = None) -> None:
        """Something for which there was no time, or that can't be done here."""
        self._pending.pop(name, None)
        self.left_out.append(name if why is None else f"{name}: {why}")

    def note(self, words: str) -> None:
        """Something to know that is no failure."""
        self.notes.append(words)
        self._say(words)

    def as_json(self) -> dict:
        """All of it."""
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            **self.about,
            "settings": self.settings,
            "seconds": round(time.monotonic() - self._began, 1),
            "failures": self.failures,
            "left_out": [*self.left_out, *self._pending],
            "notes": self.notes,
            **self.extras,
            "results": self.results,
        }

    def save(self) -> None:
        """Whole or not at all, whenever the process is stopped."""
        half_written = self.path.with_suffix(".part")
        half_written.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        os.replace(half_written, self.path)
