"""Watching one object's method calls without changing its class for anyone else.

The object's class is swapped for a subclass of the same name that announces calls. An attribute
on the instance would not do: pipelines look at the signatures of their scheduler's methods, copy
it, and Python looks up ``__call__`` on the class. Copies and pickles of an observed object are
stock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

_OBSERVERS = "__ras_observers__"
_Observer = TypeVar("_Observer")
# (stock method, observers, object, positional arguments, keyword arguments) -> result
Wrapper = Callable[
    [Callable[..., Any], tuple[object, ...], Any, tuple[Any, ...], dict[str, Any]], Any
]


def observe(target: Any, observer: object, wrappers: dict[str, Wrapper]) -> None:
    """Announce calls of some methods of ``target`` to ``observer``.

    Args:
        target: The object, whose class is swapped at the first observer.
        observer: Whoever wants to know; added once.
        wrappers: By method name, what runs in the method's place: it gets the stock method, the
            current observers, the object and the arguments.
    """
    kind = type(target)
    if _OBSERVERS not in vars(kind):
        target.__class__ = kind = _observed(kind, wrappers)
    watching: list[object] = vars(kind)[_OBSERVERS]
    if not any(other is observer for other in watching):
        watching.append(observer)


def unobserve(target: Any, observer: object) -> None:
    """Stop announcing; the last observer gives the object its own class back."""
    kind = type(target)
    watching = getattr(kind, _OBSERVERS, [])
    watching[:] = [other for other in watching if other is not observer]
    if _OBSERVERS in vars(kind) and not watching:
        target.__class__ = kind.__base__


def observers(target: object, kind: type[_Observer]) -> list[_Observer]:
    """The observers of one sort that watch ``target``."""
    return [other for other in getattr(type(target), _OBSERVERS, []) if isinstance(other, kind)]


def _observed(stock: type, wrappers: dict[str, Wrapper]) -> type:
    watching: list[object] = []

    def reduce(self: Any, protocol: Any) -> Any:
        _, arguments, *rest = cast("Any", stock).__reduce_ex__(self, protocol)
        # Pickle insists that copyreg.__newobj__ gets the object's own class.
        return object.__new__, (stock, *arguments[1:]), *rest

    namespace: dict[str, Any] = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "__reduce_ex__": reduce,
        _OBSERVERS: watching,
    }
    if "step" in wrappers and not hasattr(stock, "scale_model_input"):
        # Pipelines that compare a scheduler's exact class do not know this one, and ask for the
        # method that every other scheduler has. Where the class lacks it, nothing is scaled.
        namespace["scale_model_input"] = _unscaled
    for name, wrapper in wrappers.items():
        namespace[name] = _announced(getattr(stock, name), wrapper, watching)
    return type(stock.__name__, (stock,), namespace)


def _unscaled(_scheduler: Any, sample: Any, *_args: Any, **_kwargs: Any) -> Any:
    return sample


def _announced(
    method: Callable[..., Any], wrapper: Wrapper, watching: list[object]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def announced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(method, tuple(watching), self, args, kwargs)

    return announced
