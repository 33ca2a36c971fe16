"""In front of a transformer: what happens before and after each of its calls.

What decides about a call has state and must stay outside of the graph when the transformer is
compiled: as a whole by ``torch.compile(transformer)``, which wraps it in another module, or in
place by ``transformer.compile()``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Skipped:
    """In place of a call's arguments: the module is not run, and this is what it returns."""

    output: Any


def uncompiled(module: Any) -> Any:
    """The module behind ``torch.compile``."""
    return getattr(module, "_orig_mod", module)


class Entrance:
    """Runs before and after each call of a module, compiled or not, until it is closed.

    Args:
        called: The module that is called.
        before: Gets the call's arguments; returns others, or ``None``, or with ``may_skip``
            :class:`Skipped`.
        after: Gets what the call returned, ``None`` of one that failed or was skipped; gives what
            the caller is to get.
        may_skip: Whether calls may be skipped. The module's call is replaced then, as by
            ``module.compile()``, rather than followed by hooks.
    """

    def __init__(
        self,
        called: nn.Module,
        before: Callable[[tuple[Any, ...], dict[str, Any]], Call | Skipped | None],
        after: Callable[[Any], Any],
        *,
        may_skip: bool = False,
    ) -> None:
        self._called = called
        self._before = before
        self._after = after
        self._compiled = _compiled_call(called)
        self._wrapper: Callable[..., Any] | None = None
        self._handles: list[Any] = []
        if self._compiled is not None or may_skip:
            # In place: torch runs this instead of the module's own call, hooks included.
            call = self._compiled or called._call_impl  # noqa: SLF001
            self._wrapper = functools.partial(self._run, call)
            _set_compiled_call(called, self._wrapper)
        else:
            self._handles = [
                called.register_forward_pre_hook(self._on_call, with_kwargs=True, prepend=True),
                called.register_forward_hook(self._on_return, always_call=True),
            ]

    def leads_to(self, called: nn.Module) -> bool:
        """Whether this is in front of the module as it is called now."""
        return called is self._called and _compiled_call(called) is self._wrapper

    def close(self) -> None:
        """Give the module its own call back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._wrapper is not None and _compiled_call(self._called) is self._wrapper:
            if self._compiled is None:
                del vars(self._called)["_compiled_call_impl"]
            else:
                _set_compiled_call(self._called, self._compiled)

    def __reduce__(self) -> tuple[type[_NoEntrance], tuple[()]]:
        """Copies and pickles of the module are stock."""
        return _NoEntrance, ()

    def _run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        changed = self._before(args, kwargs)
        if isinstance(changed, Skipped):
            self._after(None)
            return changed.output
        if changed is not None:
            args, kwargs = changed
        try:
            output = call(*args, **kwargs)
        except BaseException:
            self._after(None)
            raise
        return self._after(output)

    def _on_call(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        changed = self._before(args, kwargs)
        assert not isinstance(changed, Skipped)
        return changed

    def _on_return(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        return self._after(output)


class _NoEntrance(Entrance):
    """What becomes of an entrance in a copy: nothing happens there."""

    def __init__(self) -> None:
        self._before = _no_change
        self._after = _same


def _no_change(_args: Any, _kwargs: Any) -> None:
    return None


def _same(output: Any) -> Any:
    return output


def _compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    return vars(module).get("_compiled_call_impl")


def _set_compiled_call(module: nn.Module, call: Callable[..., Any]) -> None:
    vars(module)["_compiled_call_impl"] = call
