# SPDX-License-Identifier: Apache-2.0
"""What stands where a verb looks for something of the instance's own, and what it makes of that.

One row is a verb and a path that it touches, one column what the storage, or a program that sees
the instance directory, put there. ``link`` and ``above`` are links to the real thing, which was
moved out of the instance: whoever followed them would find all in order. ``hard`` is a second name
of a file elsewhere. A number is the exit code of the refusal, ``ok`` a harmless end, ``-``: makes
no sense. Whatever the outcome, nothing outside of the instance is opened, changed or removed, and
nothing waits for a FIFO.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from serdab.errors import Error
from serdab.instance.bom import copy_bom
from serdab.instance.check import check_instance
from serdab.instance.layout import Instance
from serdab.instance.locks import lock_run
from serdab.instance.measurements import read_measurements
from serdab.instance.package import PackageRequest, package
from serdab.instance.rebind import rebind_layers
from serdab.instance.reset import reset, reset_volume
from serdab.instance.rootview import View, open_view
from serdab.instance.sealedroot import verified_chain
from tests.harness.canaries import Canaries
from tests.harness.command import Command
from tests.harness.signers import signer
from tests.recovery.rekeying import OLD, do_build, do_rekey, make_place

TABLE: Final = """
verb      path                              link above fifo device directory file hard
build     Occlum.json                       2    -     2    2      2         -    ok
build     image                             2    -     2    2      -         2    -
build     image.owners                      2    -     2    2      2         -    ok
build     image/root                        ok   2     ok   ok     -         ok   -
build     image/root/lower                  ok   ok    ok   ok     ok        -    ok
build     initfs                            2    -     2    2      -         2    -
build     initfs/bin/init                   ok   2     2    2      2         -    ok
build     build                             2    -     2    2      -         2    -
build     build/mount/__ROOT                ok   ok    ok   ok     -         ok   -
build     build/mount/__ROOT/image.sefs     ok   ok    ok   ok     ok        -    ok
build     build/.Occlum_sys.json.protected  ok   2     ok   ok     ok        -    ok
build     .build-staging                    ok   -     ok   ok     -         ok   -
build     .build-staging-old                ok   -     ok   ok     -         ok   -
build     run                               ok   -     ok   ok     -         ok   -
copy-bom  image                             2    -     2    2      -         2    -
copy-bom  image/opt                         ok   2     2    2      -         2    -
copy-bom  image.owners                      2    -     2    2      2         -    ok
rekey     build                             2    -     2    2      -         2    -
rekey     build/mount/__ROOT                2    2     2    2      -         2    -
rekey     build/mount/__ROOT/image.sefs     3    2     3    3      3         -    3
rekey     build/initfs/__ROOT/image.sefs    2    2     2    2      2         -    ok
rekey     .rekey-staging                    ok   -     ok   ok     -         ok   -
rekey     .rekey-staging-old                ok   -     ok   ok     -         ok   -
rekey     run                               2    -     2    2      -         2    -
rekey     run/.rekey                        ok   2     ok   ok     -         ok   -
rekey     run/mount/__ROOT                  2    2     2    2      -         2    -
package   build                             2    -     2    2      -         2    -
package   build/mount/__ROOT/image.sefs     3    2     3    3      3         -    3
package   build/lib/libserdab.signed.json   2    2     2    2      2         -    ok
reset     run                               2    -     2    2      -         2    -
reset     run/mount                         2    2     2    2      -         2    -
reset     run/mount/__ROOT                  2    2     2    2      -         2    -
reset     build/previous                    2    2     2    2      -         2    -
volume    volumes                           2    -     2    2      -         2    -
volume    volumes/one                       2    2     2    2      -         2    -
volume    volumes/one/anchor                ok   2     ok   ok     ok        -    ok
fsck      build/mount/__ROOT                2    2     2    2      -         2    -
fsck      build/mount/__ROOT/image.sefs     3    2     3    3      3         -    3
fsck      run/mount                         2    2     2    2      -         2    -
fsck      run/mount/__ROOT                  2    2     2    2      -         2    -
fsck      run/mount/__ROOT/anchor           3    2     3    3      3         -    3
print     build                             2    -     2    2      -         2    -
print     build/lib/libserdab.signed.json   2    2     2    2      2         -    ok
mount     build                             2    -     2    2      -         2    -
mount     build/mount                       2    2     2    2      -         2    -
mount     build/mount/__ROOT                2    2     2    2      -         2    -
mount     build/mount/__ROOT/image.sefs     3    2     3    3      3         -    3
mount     run                               2    -     2    2      -         2    -
mount     run/mount                         2    2     2    2      -         2    -
mount     run/mount/__ROOT                  2    2     2    2      -         2    -
mount     run/mount/__ROOT/anchor           3    2     3    3      3         -    3
run       build                             125  -     125  125    -         125  -
run       build/mount                       125  125   125  125    -         125  -
run       build/mount/__ROOT                125  125   125  125    -         125  -
run       build/mount/__ROOT/image.sefs     125  125   125  125    125       -    125
run       build/initfs/__ROOT               125  125   125  125    -         125  -
run       run                               125  -     125  125    -         125  -
run       run/mount                         125  125   125  125    -         125  -
run       run/mount/__ROOT                  125  125   125  125    -         125  -
run       run/mount/__ROOT/anchor           125  125   125  125    125       -    125
lock      run                               2    -     2    2      -         2    -
lock      run/.rekey                        ok   2     ok   ok     -         ok   -
"""
KINDS: Final = ("link", "above", "fifo", "device", "directory", "file", "hard")
ROWS: Final = [line.split() for line in TABLE.strip().splitlines()[1:]]


def run_build(instance: str) -> None:
    do_build(Instance.open(instance), OLD)


def run_copy_bom(instance: str) -> None:
    copy_bom(f"{instance}.yaml", f"{instance}/image", say=lambda _: None)


def run_rekey(instance: str) -> None:
    do_rekey(Instance.open(instance, sources=False))


def run_rebind(instance: str) -> None:
    rebind_layers(Instance.open(instance, sources=False), OLD, say=lambda _: None)


def run_package(instance: str) -> None:
    request = PackageRequest(f"{instance}.tar.gz", signer(), debug=True, image_key=OLD)
    package(Instance.open_built(instance), request, say=lambda _: None)


def run_reset(instance: str) -> None:
    reset(Instance.open(instance, sources=False), say=lambda _: None)


def run_reset_volume(instance: str) -> None:
    reset_volume(Instance.open(instance, sources=False), "volumes/one", say=lambda _: None)


def run_fsck(instance: str) -> None:
    for checked in check_instance(Instance.open_built(instance), OLD):
        assert checked.report.is_clean()


def run_print(instance: str) -> None:
    read_measurements(Instance.open_built(instance))


class Refused(Error):
    """What the process of a verb said, with its exit code."""

    def __init__(self, result: subprocess.CompletedProcess[bytes]) -> None:
        super().__init__(result.stderr.decode())
        self.exit_code = result.returncode


def run_mount(instance: str) -> None:
    """Open what `mount` shows; the mount itself is the kernel's, and its place the user's."""
    place = Instance.open_built(instance)
    with lock_run(place):
        chain = verified_chain(place)
        open_view(place, chain, OLD, View()).fs.close()


def run_run(instance: str) -> None:
    command = ("-C", instance, "run", "--image-key", f"{instance}.key", "/bin/true")
    result = Command(dict(os.environ)).run(*command)
    assert b"Traceback" not in result.stderr, result.stderr
    if result.returncode:
        raise Refused(result)


def run_lock(instance: str) -> None:
    lock_run(Instance.open_built(instance)).close()


VERBS: Final[dict[str, Callable[[str], None]]] = {
    "build": run_build,
    "copy-bom": run_copy_bom,
    "rekey": run_rekey,
    "rebind": run_rebind,
    "package": run_package,
    "reset": run_reset,
    "volume": run_reset_volume,
    "fsck": run_fsck,
    "print": run_print,
    "mount": run_mount,
    "run": run_run,
    "lock": run_lock,
}


def make_template(folder: Path) -> Path:
    """Make a built instance with a writable layer, a volume, a BOM, and its state directory."""
    base = folder / "base"
    with pytest.MonkeyPatch.context() as patch:
        make_place(base, folder / "saved", patch, fill=_put_true)
    (base / "instance.key").write_text(OLD.dump() + "\n")
    (base / "instance.key").chmod(0o600)
    shutil.copytree(base / "instance/run/mount/__ROOT", base / "instance/volumes/one")
    (base / "instance/image.owners").write_text('{"format": 1, "owners": []}')
    (base / "file").write_text("content")
    (base / "instance.yaml").write_text(
        "targets:\n- target: /opt/new\n  owner: 1:2\n"
        f"  copy:\n  - files:\n    - name: {base}/file\n"
    )
    return base


def _put_true(image: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox")
    shutil.copy(busybox, image / "bin/true")


def open_copy(template: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy instance and state, as of another machine: it remembers no layer at this path.

    All copies have one cache directory: byte code of what a boot runs, compiled by the first.
    """
    shutil.copytree(template, base, symlinks=True)
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(base / name.lower()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(template.parent / "cache"))
    return base


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("table"))


@pytest.fixture
def instance(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return open_copy(template, tmp_path / "base", monkeypatch) / "instance"


def put(kind: str, instance: Path, relative: str, outside: Path) -> None:
    """Put something else where ``relative`` is; skip what makes no sense there."""
    path = instance / relative
    if kind == "above":
        if "/" not in relative:
            pytest.skip("nothing above it")
        path = path.parent
    if path.exists():
        shutil.move(path, outside / "real")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        (outside / "real").mkdir()
        (outside / "real/secret").write_text("canary")
    match kind:
        case "link" | "above":
            path.symlink_to(outside / "real")
        case "fifo":
            os.mkfifo(path)
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        case "directory":
            path.mkdir()
        case "file":
            path.write_text("something")
        case "hard":
            os.link(outside / "real", path)


def outcome(act: Callable[[], None]) -> str:
    try:
        act()
    except Error as exc:
        return str(exc.exit_code)
    return "ok"


def cases() -> list[tuple[str, str, str, str]]:
    return [
        (verb, path, kind, expected)
        for verb, path, *columns in ROWS
        for kind, expected in zip(KINDS, columns, strict=True)
        if expected != "-"
    ]


@pytest.mark.root
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_content_where_nothing_was_put(instance: Path, verb: str) -> None:
    assert outcome(lambda: VERBS[verb](str(instance))) == "ok"


@pytest.mark.root
@pytest.mark.parametrize(("verb", "path", "kind", "expected"), cases())
def test_the_table_holds(
    instance: Path, tmp_path: Path, verb: str, path: str, kind: str, expected: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    put(kind, instance, path, outside)
    # A second name of a file is content like any other: reading it is what is wanted.
    with Canaries(outside / "real", hears_reads=kind != "hard"):
        found = outcome(lambda: VERBS[verb](str(instance)))
    assert found == expected
