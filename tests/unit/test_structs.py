# SPDX-License-Identifier: Apache-2.0
"""``serdab.structs`` does what ``dataclass(slots=True)`` does: the standard library is asked."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest

from serdab import structs


class Plain:
    number: int
    text: str = "x"


class Made:
    items: list[int] = structs.field(default_factory=list)
    other: ClassVar[int] = 3


class MadeByThem:
    items: list[int] = dataclasses.field(default_factory=list)
    other: ClassVar[int] = 3


class Checked:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(self.number)


class Spoken:
    key: bytes

    def __repr__(self) -> str:
        return "hidden"


class Empty:
    pass


@structs.frozen
class Kept:
    """At the top of a module, as pickle wants it."""

    number: int
    text: str = "x"


@structs.frozen
class More(Kept):
    more: int = 7

    def shown(self) -> str:
        return f"{self.number} {self.text} {self.more}"


def outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except Exception as exc:
        return type(exc)


def fresh(cls: type) -> type:
    """Return it as it was written: a dataclass changes the class that it was made of."""
    own = {n: v for n, v in cls.__dict__.items() if n not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (), own)


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}), ((1,), {}), ((1, "y"), {}), ((), {"number": 1}), ((), {"text": "y"}),
    ((1,), {"text": "y"}), ((1,), {"number": 2}), ((1, "y", 3), {}), ((1,), {"none": 2}),
    ((-1,), {}), ((b"k",), {}),
]  # fmt: skip


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(cls, cls) for cls in (Plain, Checked, Spoken, Empty)] + [(Made, MadeByThem)],
)
def test_it_does_what_a_dataclass_does(ours: type, theirs: type, is_frozen: bool) -> None:
    us: Any = (structs.frozen if is_frozen else structs.mutable)(fresh(ours))
    them: Any = dataclasses.dataclass(frozen=is_frozen, slots=True)(fresh(theirs))
    assert us.__slots__ == them.__slots__
    assert us.__match_args__ == them.__match_args__
    for args, named in CALLS:

        def fields(cls: Any, args: Any = args, named: Any = named) -> object:  # noqa: ANN401
            made = cls(*args, **named)
            return [getattr(made, name) for name in cls.__match_args__], repr(made)

        mine = outcome(lambda f=fields: f(us))  # type: ignore[misc]
        his = outcome(lambda f=fields: f(them))  # type: ignore[misc]
        assert str(mine) == str(his).replace(theirs.__qualname__, ours.__qualname__), (args, named)
        if isinstance(mine, type):
            continue
        check_an_instance(us, them, args, named)


def check_an_instance(us: Any, them: Any, args: Any, named: Any) -> None:  # noqa: ANN401
    one, same, theirs = us(*args, **named), us(*args, **named), them(*args, **named)
    assert one == same
    assert one != theirs
    assert not hasattr(one, "__dict__")
    is_hashed = outcome(lambda: hash(theirs) == hash(theirs))
    assert outcome(lambda: hash(one) == hash(same)) == is_hashed
    for name in (*us.__match_args__, "none"):
        for act, rest in ((setattr, (5,)), (delattr, ())):
            mine = outcome(partial(act, one, name, *rest))
            assert (mine is None) == (outcome(partial(act, theirs, name, *rest)) is None)


def test_each_instance_gets_a_default_of_its_own() -> None:
    made: Any = structs.mutable(Made)
    one, other = made(), made()
    one.items.append(1)
    assert other.items == []


def test_a_copy_a_pickle_and_a_replacement_are_equal() -> None:
    one = Kept(1, "y")
    assert copy.deepcopy(one) == copy.copy(one) == pickle.loads(pickle.dumps(one)) == one
    assert structs.replace(one, text="z") == Kept(1, "z")
    assert one.text == "y"
    with pytest.raises(TypeError):
        structs.replace(one, none=1)


def test_a_class_inherits_fields_and_is_another_class() -> None:
    assert More(1, more=2).shown() == "1 x 2"
    assert More(1) != Kept(1)
    assert repr(More(1)) == "More(number=1, text='x', more=7)"
    match Kept(1, "y"):
        case Kept(number, text):
            assert (number, text) == (1, "y")


def test_the_start_of_no_process_imports_what_it_stands_for() -> None:
    code = (
        "import sys; import serdab.libos.kernel, serdab.libos.nursery, serdab.cli.run; "
        "print(sorted({'dataclasses', 'inspect', 'ast'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
