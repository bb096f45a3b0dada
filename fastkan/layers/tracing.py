"""Support for ``torch.fx.symbolic_trace``, which calls modules with proxies instead of tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.fx import Proxy

Fn = TypeVar("Fn", bound=Callable)


def leaf(function: Fn) -> Fn:
    """Decorate a function so that a call with a proxy as the first argument becomes a single node of the graph."""

    @functools.wraps(function)
    def call(x: Any, *args: Any, **options: Any) -> Any:
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_function", call, (x, *args), options)
        return function(x, *args, **options)

    return call  # type: ignore[return-value]


def call_as_leaf(module: nn.Module, x: Proxy, **options: Any) -> Proxy | None:
    """Record a call of a module as a single node of the graph, so that the traced module calls the module itself.

    Returns:
        The proxy of the result, or None if the module is the root of the trace, which its own graph cannot call.
    """
    path: str = x.tracer.path_of_module(module)  # type: ignore[attr-defined]
    return x.tracer.create_proxy("call_module", path, (x,), options) if path else None
