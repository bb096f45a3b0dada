"""A network's versions, kept in memory where that is asked for, and never in files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastkan_kernels import FLAG, Text, checked

if TYPE_CHECKING:
    pass


class Versions:
    """Copies of a network after each step of its workflow, by number.

    ``"0.0"`` is the fresh network, ``"0.1"`` the one after the first step, and ``"1.b"`` what follows after one
    :func:`rewind`. A network and what is made of it (by pruning, say) share their versions.

    Attributes:
        models: the copies, by number.
        round, state_id: the two parts of the last number.

    Example:
        >>> model = KAN([2, 5, 1], seed=0, auto_save=True)
        >>> deeper = model.expand_depth()
        >>> model.versions
        Versions: 0.0, 0.1
    """

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.round, self.state_id = 0, -1
        self._depth = 0

    @contextmanager
    def making(self) -> Iterator[None]:
        """A step in progress, whose own steps are no versions of their own."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def add(self, model: Any) -> None:
        """Keep a copy of the network, outside of any step in progress, as the next version."""
        if not self._depth:
            self.state_id += 1
            self.models[f"{self.round}.{self.state_id}"] = self.copied(model)

    def copied(self, model: Any) -> Any:
        """A copy of a network that shares only its samples, which nobody writes into."""
        sample = model._sample
        return copy.deepcopy(model, {id(sample): sample})

    def __deepcopy__(self, memo: dict[int, Any]) -> Versions:
        return self

    def __repr__(self) -> str:
        return f"Versions: {', '.join(self.models)}"


@checked(keep=FLAG)
def keep_versions(model: Any, keep: bool = True) -> None:
    """Begin to keep a copy of the network after each step, the first of it as it is now; or keep none any longer.

    Example:
        >>> model = KAN([2, 5, 1], seed=0)
        >>> model.keep_versions()
        >>> model.versions
        Versions: 0.0
    """
    model.versions = Versions() if keep else None
    log_history(model)


@checked(model_id=Text())
def rewind(model: Any, model_id: str) -> Any:
    """Go back to a version, and number what follows from the next round on.

    Args:
        model_id: its number, such as ``"0.2"``; ``model.versions`` shows which there are.

    Returns:
        A copy of that version.

    Raises:
        RuntimeError: if no versions are kept.
        ValueError: for a number that is not there.

    Example:
        >>> model = KAN([2, 5, 1], seed=0, auto_save=True)
        >>> model.expand_depth().rewind("0.0").depth, model.versions
        (2, Versions: 0.0, 0.1, 1.0)
    """
    versions, kept = _version(model, model_id)
    versions.round, versions.state_id = versions.round + 1, int(model_id.split(".")[1]) - 1
    versions.add(kept)
    return versions.copied(kept)


@checked(model_id=Text())
def checkout(model: Any, model_id: str) -> Any:
    """A copy of a version; numbers go on as they were.

    Args:
        model_id: its number, such as ``"0.2"``.

    Raises:
        RuntimeError, ValueError: as :func:`rewind`.

    Example:
        >>> model = KAN([2, 5, 1], seed=0, auto_save=True)
        >>> model.expand_depth().checkout("0.0").depth
        2
    """
    versions, kept = _version(model, model_id)
    return versions.copied(kept)


@checked(method_name=Text())
def log_history(model: Any, method_name: str = "") -> None:
    """Keep the network as it is now as a version, if versions are kept.

    Args:
        method_name: without meaning.

    Example:
        >>> model = KAN([2, 5, 1], seed=0, auto_save=True)
        >>> model.log_history("my own step")
        >>> model.versions
        Versions: 0.0, 0.1
    """
    if model.versions is not None:
        model.versions.add(model)


def _version(model: Any, model_id: str) -> tuple[Versions, Any]:
    versions = model.versions
    if versions is None:
        raise RuntimeError(
            "this model keeps no versions: KAN(..., auto_save=True) keeps one in memory after each step; or keep "
            "model.copy() yourself, or write it by model.save(path)"
        )
    if model_id not in versions.models:
        raise ValueError(f"model_id must be one of {', '.join(map(repr, versions.models))}; got {model_id!r}")
    return versions, versions.models[model_id]
