# SPDX-License-Identifier: Apache-2.0
"""``Occlum.json``: the configuration people write, in the format that Occlum documents, strictly.

Every field Occlum documents is acted on, accepted with one line, or refused; the table stands in
docs/config.md. An unknown or ill-typed field is refused by its path. Serdab's own additions stand
under the one key ``serdab``. Above: ``instance.build``. Below: ``strict``, ``checks``.
"""

from __future__ import annotations

from typing import Final

from serdab.config.boot import (
    FRESHNESS,
    MIN_UPPER_BYTES,
    NETWORKS,
    Limits,
    MountEntry,
    UpperLayer,
)
from serdab.config.checks import (
    check_entry_points,
    check_environment,
    check_names,
    check_target,
)
from serdab.config.imageform import ImageForm, parse_form
from serdab.config.mounts import EVERYTHING, MountPolicy, parse_policy
from serdab.config.names import BUILD, CONFIG, IMAGE
from serdab.config.strict import Section, load_object
from serdab.errors import Error, UsageError
from serdab.keys import parse_hyphened
from serdab.structs import field, frozen, replace

MIN_CACHE_BYTES: Final = 192 << 10
_KNOWN_TYPES: Final = ("sefs", "hostfs", "ramfs", "unionfs", "devfs", "procfs", "ext2")


@frozen
class InstanceConfig:
    """What ``Occlum.json`` says, with defaults filled in.

    ``image_mac`` is the MAC the sealed image must have: 32 bytes, a 16-byte prefix, or empty for
    "whatever the build makes". ``notes`` are the lines for fields that are accepted but change
    nothing here. ``key_separation`` is None or (family id, extended product id).
    """

    limits: Limits = field(default_factory=Limits)
    entry_points: tuple[str, ...] = ("/bin",)
    env_default: tuple[str, ...] = ()
    env_untrusted: tuple[str, ...] = ()
    product_id: int = 0
    security_version: int = 0
    debuggable: bool = True
    disable_log: bool = False
    key_separation: tuple[bytes, bytes] | None = None
    mounts: tuple[MountEntry, ...] = ()
    upper: UpperLayer = field(default_factory=UpperLayer)
    image_mac: bytes = b""
    host_directories: tuple[str, ...] = (".",)
    network: str = "host"
    freshness: str = "record"
    runtime_mounts: MountPolicy = EVERYTHING
    image_form: ImageForm = field(default_factory=ImageForm)
    notes: tuple[str, ...] = ()


def _fail(path: str, expected: str, found: str, hint: str) -> Error:
    return UsageError(
        f"{CONFIG}: {path}" if path else f"{CONFIG} is not valid",
        stage="config",
        subject=path or CONFIG,
        expected=expected,
        found=found,
        hint=hint or "docs/config.md lists every field",
    )


def parse(raw: bytes) -> InstanceConfig:
    """Return the configuration in ``raw``.

    Raises:
        UsageError: with the path of the offending field as its subject.
    """
    notes: list[str] = []
    top = load_object(raw, _fail)
    limits = _limits(top.section("resource_limits"), top.section("process"), notes)
    env = top.section("env")
    metadata = top.section("metadata")
    ours = top.section("serdab")
    entry_points = check_entry_points(top, "entry_points", top.texts("entry_points", ("/bin",)))
    if not entry_points:
        raise top.refuse("entry_points", "at least one path", "none", 'as in ["/bin"]')
    _feature(top.section("feature"), notes)
    separation = _key_separation(metadata)
    debuggable = metadata.flag("debuggable", default=True)
    disable_log = metadata.flag("disable_log", default=not debuggable)
    if not debuggable and not disable_log:
        notes.append(
            "metadata.disable_log: false changes nothing: a production instance has no log"
        )
    upper, image_mac, mounts = _mounts(top, notes)
    config = InstanceConfig(
        limits=limits,
        entry_points=entry_points,
        env_default=check_environment(env, "default", env.texts("default", ())),
        env_untrusted=check_names(env, "untrusted", env.texts("untrusted", ())),
        product_id=metadata.integer("product_id", 0, high=0xFFFF),
        security_version=metadata.integer("version_number", 0, high=0xFFFF),
        debuggable=debuggable,
        disable_log=disable_log,
        key_separation=separation,
        mounts=mounts,
        upper=replace(upper, max_bytes=_upper_limit(ours)),
        image_mac=image_mac,
        host_directories=ours.texts("host_directories", (".",)),
        network=ours.text("network", "host", choices=NETWORKS),
        freshness=ours.text("freshness", "record", choices=FRESHNESS),
        runtime_mounts=parse_policy(ours.section("runtime_mounts")),
        image_form=parse_form(ours.section("image")),
        notes=tuple(notes),
    )
    for section in (env, metadata, ours, top):
        section.close()
    return config


def _upper_limit(ours: Section) -> int | None:
    limit = ours.size("writable_size")
    if limit is not None and limit < MIN_UPPER_BYTES:
        raise ours.refuse("writable_size", "at least 1MB", f"{limit}B")
    return limit


def _accept(section: Section, name: str, notes: list[str], why: str) -> None:
    if section.has(name):
        notes.append(f"{section.where(name)}: accepted, changes nothing here: {why}")


def _limits(resources: Section, process: Section, notes: list[str]) -> Limits:
    kernel = "the supervisor's memory is the host's"
    for name in ("kernel_space_heap_size", "kernel_space_heap_max_size", "kernel_space_stack_size"):
        _accept(resources, name, notes, kernel)
        resources.size(name)
    _accept(resources, "init_num_of_threads", notes, "threads are made when they are needed")
    first_threads = resources.optional_integer("init_num_of_threads", high=1 << 22)
    threads = resources.optional_integer("max_num_of_threads", low=1, high=1 << 22)
    if first_threads is not None and threads is not None and first_threads > threads:
        raise resources.refuse(
            "init_num_of_threads", f"at most max_num_of_threads, {threads}", str(first_threads)
        )
    size = resources.size("user_space_size")
    largest = resources.size("user_space_max_size")
    if size is not None and largest is not None and size > largest:
        raise resources.refuse(
            "user_space_size", f"at most user_space_max_size, {largest} bytes", f"{size} bytes"
        )
    memory = largest if largest is not None else size
    if memory == 0:
        raise resources.refuse("user_space_size", "more than nothing", "0 bytes")
    stack = process.size("default_stack_size")
    if stack is not None and stack < 64 << 10:
        raise process.refuse("default_stack_size", "at least 64KB", f"{stack} bytes")
    _accept(process, "default_heap_size", notes, "heaps grow within the memory limit")
    process.size("default_heap_size")
    _accept(process, "default_mmap_size", notes, "obsolete in Occlum too")
    process.size("default_mmap_size")
    resources.close()
    process.close()
    return Limits(max_processes=threads, memory_bytes=memory, stack_bytes=stack)


def _feature(section: Section, notes: list[str]) -> None:
    for name in ("amx", "pkru"):
        _accept(section, name, notes, "programs use the processor as the host lets them")
        section.integer(name, 0, high=2)
    _accept(section, "io_uring", notes, "network calls go straight to the kernel")
    section.integer("io_uring", 0, high=16)
    _accept(section, "enable_edmm", notes, "memory is always dynamic")
    section.flag("enable_edmm", default=False)
    _accept(section, "enable_posix_shm", notes, "shared memory is always there")
    section.flag("enable_posix_shm", default=False)
    section.close()


def _key_separation(metadata: Section) -> tuple[bytes, bytes] | None:
    """Read enable_kss, family_id and ext_prod_id: with the first set they enter MRENCLAVE."""
    enabled = metadata.flag("enable_kss", default=False)
    values = []
    for name in ("family_id", "ext_prod_id"):
        section = metadata.section(name)
        number = 0
        for half in ("high", "low"):
            text = section.text(half, "0x0")
            digits = text.removeprefix("0x")
            if not 1 <= len(digits) <= 16 or any(c not in "0123456789abcdefABCDEF" for c in digits):
                raise section.refuse(half, "64 bits in hexadecimal, as in 0x12ab", repr(text))
            number = number << 64 | int(digits, 16)
        section.close()
        values.append(number.to_bytes(16, "big"))
    if not enabled:
        if any(any(value) for value in values):
            raise metadata.refuse(
                "enable_kss",
                "true, since family_id or ext_prod_id is set",
                "false",
                "without it the two ids would not be part of any measurement",
            )
        return None
    return values[0], values[1]


def _mounts(top: Section, notes: list[str]) -> tuple[UpperLayer, bytes, tuple[MountEntry, ...]]:
    root: tuple[UpperLayer, bytes] | None = None
    out: list[MountEntry] = []
    targets: set[str] = set()
    if not top.has("mount"):
        raise top.refuse("mount", "a list with a unionfs at /", "nothing", _ROOT_HINT)
    for line in top.sections("mount"):
        kind = line.text("type", choices=_KNOWN_TYPES)
        target = check_target(line, "target", line.text("target"))
        if target in targets:
            raise line.refuse("target", "each target once", repr(target))
        targets.add(target)
        if target == "/":
            if kind != "unionfs":
                raise line.refuse("type", "unionfs at /", repr(kind), _ROOT_HINT)
            root = _root_line(line, notes)
        else:
            out.append(_other_line(line, kind, target))
    if root is None:
        raise top.refuse("mount", "a unionfs at /", "no line for /", _ROOT_HINT)
    # Occlum puts these two in front of what the user lists; a line that repeats one is the same.
    for target, kind in (("/dev", "devfs"), ("/proc", "procfs")):
        if target not in targets:
            out.insert(0, MountEntry(target, kind))
    return root[0], root[1], tuple(out)


_ROOT_HINT: Final = "`serdab new` writes an Occlum.json with the lines that are needed"


def _root_line(line: Section, notes: list[str]) -> tuple[UpperLayer, bytes]:
    line.optional_text("source")
    options = line.section("options")
    if not options.has("layers"):
        raise options.refuse("layers", "the image layer and the writable layer", "nothing")
    layers = options.sections("layers")
    if len(layers) != 2:
        raise options.refuse("layers", "two layers", f"{len(layers)}", _ROOT_HINT)
    image, container = layers
    for layer in layers:
        layer.text("type", choices=("sefs",))
        layer.text("target", choices=("/",))
    image_source = _inside(image, "source")
    if image_source != IMAGE:
        raise image.refuse("source", f"./{IMAGE}, where build puts the image", image_source)
    image_options = image.section("options")
    mac = _image_mac(image_options)
    _cache_size(image_options, notes)
    source = _inside(container, "source")
    if source == BUILD or source.startswith(BUILD + "/"):
        raise container.refuse("source", "a path outside build/", source)
    upper_options = container.section("options")
    if upper_options.has("MAC"):
        raise upper_options.refuse("MAC", "no MAC on the writable layer", "one", _ROOT_HINT)
    upper_options.integer("index", 0, high=0)
    _cache_size(upper_options, notes)
    upper = UpperLayer(
        source=source,
        autokey_policy=upper_options.integer("autokey_policy", 0, high=0xFFFFFFFF),
        temporary=upper_options.flag("temporary", default=False),
    )
    for section in (image_options, upper_options, image, container, options, line):
        section.close()
    return upper, mac


def _image_mac(options: Section) -> bytes:
    """Read the reference MAC: empty, 64 digits, or sixteen hyphened bytes as a prefix."""
    text = options.text("MAC")
    if not text:
        return b""
    try:
        return bytes.fromhex(text) if len(text) == 64 else parse_hyphened(text, 16)
    except ValueError:
        raise options.refuse(
            "MAC",
            "nothing, 64 hexadecimal digits or sixteen hyphened bytes",
            "something else",
            "an empty MAC is filled in by build; a value is one the build must reproduce",
        ) from None


def _cache_size(options: Section, notes: list[str]) -> None:
    _accept(options, "cache_size", notes, "the kernel's page cache adapts by itself")
    size = options.size("cache_size")
    if size is not None and (size < MIN_CACHE_BYTES or size % 4096):
        raise options.refuse("cache_size", "at least 192KB, a multiple of 4KB", f"{size} bytes")


def _inside(layer: Section, name: str) -> str:
    """Take a path below the instance directory and return it in its shortest form."""
    import posixpath

    text = layer.text(name)
    path = posixpath.normpath(text) if text else ""
    if path in ("", ".") or path.startswith("/") or ".." in text.split("/"):
        raise layer.refuse(name, "a path below the instance directory, without ..", repr(text))
    return path


def _other_line(line: Section, kind: str, target: str) -> MountEntry:
    source = line.optional_text("source")
    options = line.section("options")
    if kind == "hostfs":
        if not source:
            raise line.refuse("source", "a host directory", "nothing", 'as in "."')
    elif kind in ("procfs", "devfs"):
        fixed = "/proc" if kind == "procfs" else "/dev"
        if target != fixed:
            raise line.refuse("target", f"{fixed} for {kind}", repr(target))
        source = None
    elif kind == "ramfs":
        source = None
    else:
        raise line.refuse(
            "type",
            "hostfs, ramfs, procfs or devfs besides the root",
            repr(kind),
            "data that must be sealed belongs under /, whose writable layer is encrypted",
        )
    options.close()
    line.close()
    return MountEntry(target, kind, source)
