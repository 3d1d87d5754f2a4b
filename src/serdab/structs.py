# SPDX-License-Identifier: Apache-2.0
"""Classes of fields that cost nothing to define: ``frozen``, ``mutable``, ``field``, ``replace``.

What ``dataclass(slots=True)`` of the standard library gives, without its import (which brings
``inspect``, the syntax tree and the tokenizer) and without compiling six functions for each class.
Both together were half of what the kernel process did before its first line (docs/adr/0015).

Above: everything. Below: nothing, and nothing is imported that no interpreter has loaded already.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False  # what type checkers read as true; typing is not to be imported here
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):  # noqa: ANN003, ANN201 - typing's, which says nothing at run time
        return lambda decorator: decorator


class _Required:
    """Stands where a field has no default."""


class _Made:
    """A default that each instance gets anew."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], T]) -> T:
    """Return a default that is made for each instance: ``default_factory()``."""
    made: Any = _Made(default_factory)
    return made  # type: ignore[no-any-return]  # what the checker sees is what it will make


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class of the annotated fields: with slots, equal and hashed by them.

    Arguments go by position or by name; ``__post_init__`` is called if there is one. An instance
    raises AttributeError when a field is set, and TypeError when it is made of other arguments.
    """
    body, get = _define(cls)
    body["__setattr__"] = body["__delattr__"] = _refuse_change
    if body.get("__hash__") is None:
        body["__hash__"] = lambda self: hash(get(self))
    return _make(cls, body)


@dataclass_transform(field_specifiers=(field,))
def mutable(cls: type[T]) -> type[T]:
    """Make the same, but for its fields, which can be set: so it has no hash."""
    return _make(cls, _define(cls)[0] | {"__hash__": None})


def replace(of: T, /, **changes: Any) -> T:  # noqa: ANN401 - the fields of T say what
    """Return a copy with some fields changed. Raises TypeError for what is no field."""
    for name in of.__match_args__:  # type: ignore[attr-defined]  # of a class made here
        if name not in changes:
            changes[name] = getattr(of, name)
    return type(of)(**changes)


def _make(cls: type[T], body: dict[str, Any]) -> type[T]:
    # Slots are read when a class is made, so it is made again.
    metaclass: Any = type(cls)
    made: type[T] = metaclass(cls.__name__, cls.__bases__, body)
    return made


def _define(cls: type) -> tuple[dict[str, Any], Callable[[Any], object]]:
    """Return what the class is made of, and what gets all fields of an instance."""
    body = {
        name: thing
        for name, thing in cls.__dict__.items()
        if name not in ("__dict__", "__weakref__")
    }
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        defaults.update(base.__dict__.get("_defaults", {}))
    own = [
        name
        for name, kind in body.get("__annotations__", {}).items()
        if not kind.startswith("ClassVar")
    ]
    for name in own:
        defaults[name] = body.pop(name, _Required)
    get: Callable[[Any], object] = attrgetter(*defaults) if defaults else lambda _: ()

    def equal(self: object, other: object) -> bool:
        return get(self) == get(other) if type(self) is type(other) else NotImplemented

    body.setdefault("__eq__", equal)
    body.setdefault("__repr__", _show)
    body.setdefault("__init__", _initializer(defaults))
    body |= {
        "__slots__": tuple(own),
        "__match_args__": tuple(defaults),
        "__reduce__": _reduce,
        "_defaults": defaults,
    }
    return body, get


def _initializer(defaults: Mapping[str, object]) -> Callable[..., None]:
    """Return an ``__init__`` that compiles the one to be when it is called: many never are."""

    def initialize(self: Any, *args: object, **named: object) -> None:  # noqa: ANN401 - of any class
        compiled = _compile(defaults, is_looked_at=hasattr(self, "__post_init__"))
        owner: Any = next(c for c in type(self).__mro__ if c.__dict__.get("__init__") is initialize)
        owner.__init__ = compiled
        compiled(self, *args, **named)

    return initialize


def _compile(defaults: Mapping[str, object], *, is_looked_at: bool) -> Callable[..., None]:
    scope: dict[str, Any] = {"put": object.__setattr__}
    words, lines = ["self"], ["pass"]
    for name, default in defaults.items():
        if default is _Required:
            words.append(name)
        else:
            scope[f"default_{name}"] = default
            words.append(f"{name}=default_{name}")
        if isinstance(default, _Made):
            lines.append(f"if {name} is default_{name}: {name} = default_{name}.make()")
        lines.append(f"put(self, {name!r}, {name})")
    if is_looked_at:
        lines.append("self.__post_init__()")
    # Of names of fields, which are identifiers of our own sources, and of nothing else.
    exec(f"def __init__({', '.join(words)}):\n " + "\n ".join(lines), scope)  # noqa: S102
    compiled: Callable[..., None] = scope["__init__"]
    return compiled


def _show(self: Any) -> str:  # noqa: ANN401 - an instance of any class made here
    fields = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{type(self).__qualname__}({', '.join(fields)})"


def _reduce(self: Any) -> tuple[type, tuple[object, ...]]:  # noqa: ANN401 - likewise
    return type(self), tuple(getattr(self, name) for name in self.__match_args__)


def _refuse_change(self: object, name: str, *_: object) -> NoReturn:
    raise AttributeError(f"{name} of a {type(self).__qualname__} cannot be changed")
