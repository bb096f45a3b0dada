"""Versions of a network: copies that are kept in memory on request, never in files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastkan_kernels import FLAG, Text, checked


class Versions:
    """Copies of a network after each method of its workflow, under version numbers.

    Version ``"0.0"`` is the initial network and ``"0.1"`` the network after the first step; the first number counts
    the calls of :func:`rewind`. A network and the networks made from it (by pruning, for example) share their versions.

    Attributes:
        models: dictionary from version numbers to copies.
        round, state_id: the two parts of the last version number.

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
        """Mark a method in progress, so that other methods that it calls add no versions."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def add(self, model: Any) -> None:
        """Keep a copy of the network as the next version, unless a method is in progress."""
        if not self._depth:
            self.state_id += 1
            self.models[f"{self.round}.{self.state_id}"] = self.copy_of(model)

    def copy_of(self, model: Any) -> Any:
        """Copy a network; the copy shares only the samples, which are never written to."""
        sample = model._sample
        return copy.deepcopy(model, {id(sample): sample})

    def __deepcopy__(self, memo: dict[int, Any]) -> Versions:
        return self

    def __repr__(self) -> str:
        return f"Versions: {', '.join(self.models)}"


@checked(keep=FLAG)
def keep_versions(model: Any, keep: bool = True) -> None:
    """Start keeping versions in memory, with the present network as version ``"0.0"``, or stop and discard them.

    Args:
        keep: whether to keep a version after each method of the workflow.

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
    """Go back to a version; the versions that follow get the next first number.

    Args:
        model_id: version number, such as ``"0.2"``; ``model.versions`` shows all.

    Returns:
        A copy of that version.

    Raises:
        RuntimeError: if no versions are kept.
        ValueError: for a number that does not exist.

    Example:
        >>> model = KAN([2, 5, 1], seed=0, auto_save=True)
        >>> model.expand_depth().rewind("0.0").depth, model.versions
        (2, Versions: 0.0, 0.1, 1.0)
    """
    versions, version = _version(model, model_id)
    versions.round, versions.state_id = versions.round + 1, int(model_id.split(".")[1]) - 1
    versions.add(version)
    return versions.copy_of(version)


@checked(model_id=Text())
def checkout(model: Any, model_id: str) -> Any:
    """Return a copy of a version, without an effect on the numbers of later versions.

    Args:
        model_id: version number, such as ``"0.2"``.

    Raises:
        RuntimeError, ValueError: as :func:`rewind`.

    Example:
        >>> model = KAN([2, 5, 1], seed=0, auto_save=True)
        >>> model.expand_depth().checkout("0.0").depth
        2
    """
    versions, version = _version(model, model_id)
    return versions.copy_of(version)


@checked(method_name=Text())
def log_history(model: Any, method_name: str = "") -> None:
    """Add the present network as a version, if versions are kept.

    Args:
        method_name: without effect; an argument of pykan's.

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
