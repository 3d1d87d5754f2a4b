# SPDX-License-Identifier: Apache-2.0
"""What programs may mount while they run: the section ``runtime_mounts`` of both configurations.

Above: ``occlum``, ``boot``. Below: ``strict``. The measured configuration holds the section only
where it differs from the default, so that configurations without it keep their bytes.
"""

from __future__ import annotations

from typing import Final

from serdab.config.checks import check_absolute, check_absolutes
from serdab.config.strict import Section
from serdab.structs import frozen

#: Each mount has a process on the host; each volume a record in the state of whoever runs it.
DEFAULT_MOUNTS: Final = 64
MOST_MOUNTS: Final = 512
DEFAULT_VOLUMES: Final = 1024
MOST_VOLUMES: Final = 1_000_000
TYPES: Final = ("unionfs", "sefs", "hostfs", "ramfs")
#: Whoever is not the inner root mounts on, and from, its own directories only; or everybody on any.
OWN: Final = "own"
ANY: Final = "any"
#: Derived from the platform's key; derived from the key that init gave for the root FS.
AUTOMATIC: Final = "automatic"
IMAGE: Final = "image"
_NAME_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
)


@frozen
class NamedKey:
    """A key that programs use as ``key=@name`` and never see.

    ``source`` is ``automatic``, ``image``, or the absolute path of a key file on the host.
    """

    name: str
    source: str


@frozen
class MountPolicy:
    """What mount(2) of a program may do.

    ``programs`` are prefixes of the paths of programs that may mount and unmount. ``layers`` are
    host directories below which sealed layers may lie; None: the same as for ``hostfs``.
    ``clear_keys`` admits ``key=`` with the key itself. ``targets``: ``own`` or ``any``.
    ``max_mounts`` are there at a time; ``max_volumes`` are remembered below the directories that
    layers may lie in.
    """

    types: tuple[str, ...] = TYPES
    programs: tuple[str, ...] = ("/",)
    layers: tuple[str, ...] | None = None
    clear_keys: bool = True
    keys: tuple[NamedKey, ...] = ()
    targets: str = OWN
    max_mounts: int = DEFAULT_MOUNTS
    max_volumes: int = DEFAULT_VOLUMES


EVERYTHING: Final = MountPolicy()


def dump_policy(policy: MountPolicy) -> dict[str, object]:
    """Return the section of the measured configuration."""
    value: dict[str, object] = {
        "types": list(policy.types),
        "programs": list(policy.programs),
        "layers": None if policy.layers is None else list(policy.layers),
        "clear_keys": policy.clear_keys,
        "keys": [{"name": key.name, "source": key.source} for key in policy.keys],
    }
    # Only what differs: a section that was measured before these fields existed keeps its bytes.
    if policy.targets != OWN:
        value["targets"] = policy.targets
    if policy.max_mounts != DEFAULT_MOUNTS:
        value["max_mounts"] = policy.max_mounts
    if policy.max_volumes != DEFAULT_VOLUMES:
        value["max_volumes"] = policy.max_volumes
    return value


def parse_policy(section: Section) -> MountPolicy:
    """Take the whole section; what is absent has its default."""
    types = section.texts("types", TYPES)
    for index, name in enumerate(types):
        if name not in TYPES:
            raise section.refuse(f"types[{index}]", "one of " + ", ".join(TYPES), repr(name))
    programs = check_absolutes(
        section,
        "programs",
        section.texts("programs", ("/",)),
        'a prefix of the programs that may mount, as in "/bin"',
    )
    layers = section.optional_texts("layers")
    targets = section.text("targets", OWN)
    if targets not in (OWN, ANY):
        raise section.refuse("targets", f"{OWN} or {ANY}", repr(targets))
    policy = MountPolicy(
        types,
        programs,
        layers,
        section.flag("clear_keys", default=True),
        _parse_keys(section),
        targets,
        section.integer("max_mounts", DEFAULT_MOUNTS, low=1, high=MOST_MOUNTS),
        section.integer("max_volumes", DEFAULT_VOLUMES, low=1, high=MOST_VOLUMES),
    )
    section.close()
    return policy


def _parse_keys(section: Section) -> tuple[NamedKey, ...]:
    out: list[NamedKey] = []
    if not section.has("keys"):
        section.optional_texts("keys")  # a known name, for messages about misspelt ones
        return ()
    for item in section.sections("keys"):
        name, source = item.text("name"), item.text("source")
        if not name or not set(name) <= _NAME_CHARACTERS:
            raise item.refuse("name", "letters, digits and _ . -", repr(name))
        if name in (key.name for key in out):
            raise item.refuse("name", "each name once", repr(name))
        if source not in (AUTOMATIC, IMAGE):
            if not source.startswith("/"):
                raise item.refuse(
                    "source",
                    f"{AUTOMATIC}, {IMAGE}, or the absolute path of a key file",
                    repr(source),
                    "`serdab gen-image-key FILE` makes a key file",
                )
            hint = "the path of a key file, as the init knows it"
            source = check_absolute(item, "source", source, hint)
        item.close()
        out.append(NamedKey(name, source))
    return tuple(out)
