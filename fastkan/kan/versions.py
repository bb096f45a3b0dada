"""Versions of a network, which are copies that are kept in memory on request and are never written to files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastkan_kernels import FLAG, Text, checked


class Versions:
    """A collection of copies of a network, with one copy for each step of the workflow.

    Each copy has a version number. Version ``"0.0"`` is the initial network, and version ``"0.1"`` is the network after
    the first step. The first part of a version number counts the calls of :func:`rewind`. A network shares its versions
    with all networks that are made from it, for example by pruning.

    Attributes:
        models: a dictionary that maps version numbers to copies of the network.
        round, state_id: the two parts of the most recent version number.

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
        """Return a context manager for the duration of a method call.

        While the context is active, no versions are added, so methods that call each other add only one version.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def add(self, model: Any) -> None:
        """Store a copy of the network as the next version, unless a call of a method is in progress."""
        if not self._depth:
            self.state_id += 1
            self.models[f"{self.round}.{self.state_id}"] = self.copy_of(model)

    def copy_of(self, model: Any) -> Any:
        """Return a copy of a network that shares only the stored samples, because samples are never modified."""
        sample = model._sample
        return copy.deepcopy(model, {id(sample): sample})

    def __deepcopy__(self, memo: dict[int, Any]) -> Versions:
        return self

    def __repr__(self) -> str:
        return f"Versions: {', '.join(self.models)}"


@checked(keep=FLAG)
def keep_versions(model: Any, keep: bool = True) -> None:
    """Start or stop keeping versions of the network in memory.

    Args:
        keep: whether to store a version after each method of the workflow. If ``keep`` is True, the current network
            becomes version ``"0.0"``. If ``keep`` is False, all versions are discarded.

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
    """Return to an earlier version. The first part of all later version numbers is increased by 1.

    Args:
        model_id: a version number, such as ``"0.2"``. ``model.versions`` shows all version numbers.

    Returns:
        A copy of the requested version of the network.

    Raises:
        RuntimeError: if the model keeps no versions.
        ValueError: if the version does not exist.

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
    """Return a copy of a version of the network, without changing how later versions are numbered.

    Args:
        model_id: a version number, such as ``"0.2"``.

    Raises:
        RuntimeError, ValueError: in the same cases as :func:`rewind`.

    Example:
        >>> model = KAN([2, 5, 1], seed=0, auto_save=True)
        >>> model.expand_depth().checkout("0.0").depth
        2
    """
    versions, version = _version(model, model_id)
    return versions.copy_of(version)


@checked(method_name=Text())
def log_history(model: Any, method_name: str = "") -> None:
    """Add the current network as a version, if the model keeps versions.

    Args:
        method_name: an argument of pykan's method that has no effect in fastkan.

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
