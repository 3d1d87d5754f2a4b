# SPDX-License-Identifier: Apache-2.0
"""The nonce auditor: in the whole suite no (key, nonce) pair ever seals two different inputs.

A pytest plugin. It wraps the two methods that seal, in this process, and notes of each call
hash(key, nonce) → hash(plaintext, associated data). A pair that met two inputs fails the session
and names the test.

Processes that the product starts run in an isolated interpreter that nothing from outside can
enter, and so it shall be. Therefore there is a *copy* of the package whose cipher notes the same
into a file, and the command under test runs that copy in every test; ``audited_sources`` is one for
a test of its own.

Workers (pytest-xdist) audit themselves and the processes they start; at the end of the session what
all of them noted is joined, and a pair that met two inputs in two workers fails the session too.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import pytest

import serdab
from serdab.crypto.aead import Buffer, RecordCipher
from tests.harness.command import COMMAND_ENVIRONMENT
from tests.harness.usedbefore import USED_BEFORE

_FILE: Final = "serdab_nonces"
_ENTRY: Final = struct.Struct("<16s16s")


def _digest(*parts: bytes | bytearray | memoryview) -> bytes:
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


class Ledger:
    """What was sealed under what."""

    def __init__(self) -> None:
        self.seen: dict[bytes, bytes] = {}
        self.repeats: list[str] = []
        self.test = "outside of any test"

    def note(self, pair: bytes, content: bytes, where: str) -> None:
        """Note one seal."""
        if self.seen.setdefault(pair, content) != content:
            self.repeats.append(where)

    def join(self, folder: Path, where: str) -> int:
        """Add what audited processes noted; return how many entries that was."""
        count = 0
        for file in sorted(folder.iterdir()):
            raw = file.read_bytes()
            # A killed process may leave a part of an entry at the end.
            for pair, content in _ENTRY.iter_unpack(raw[: len(raw) // _ENTRY.size * _ENTRY.size]):
                self.note(pair, content, where)
                count += 1
        return count

    def dump(self, file: Path) -> None:
        """Write what :meth:`join` reads."""
        with file.open("xb") as out:
            for pair, content in self.seen.items():
                out.write(_ENTRY.pack(pair, content))


LEDGER: Final = Ledger()


def _install(ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    keys: dict[int, bytes] = {}
    make, seal, seal_into = RecordCipher.__init__, RecordCipher.seal, RecordCipher.seal_into

    def noted_init(self: RecordCipher, material: bytes) -> None:
        make(self, material)
        # An identity comes back only through here, so it never stands for an older key.
        keys[id(self)] = bytes(material)

    def note(self: RecordCipher, number: int, plain: Buffer, aad: bytes) -> None:
        material = keys[id(self)]
        nonce = int.from_bytes(material[16:], "big") ^ number
        pair = _digest(material[:16], nonce.to_bytes(12, "big"))
        ledger.note(pair, _digest(plain, aad), ledger.test)

    def noted_seal(self: RecordCipher, number: int, plain: Buffer, aad: bytes) -> bytes:
        note(self, number, plain, aad)
        return seal(self, number, plain, aad)

    def noted_seal_into(
        self: RecordCipher, number: int, plain: Buffer, aad: bytes, out: memoryview
    ) -> None:
        note(self, number, plain, aad)
        seal_into(self, number, plain, aad, out)

    patch.setattr(RecordCipher, "__init__", noted_init)
    patch.setattr(RecordCipher, "seal", noted_seal)
    patch.setattr(RecordCipher, "seal_into", noted_seal_into)


@pytest.fixture(scope="session", autouse=True)
def _nonces_are_audited() -> Iterator[None]:
    """Fail the session if a (key, nonce) pair sealed two different inputs."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="sn-") as top:
        _install(LEDGER, patch)
        sources, notes = Path(top) / "audited", Path(top) / "notes"
        make_audited_sources(sources, notes)
        # Processes of an ordinary user read the one and write to the other.
        for folder, _, names in os.walk(top):
            os.chmod(folder, 0o755)
            for name in names:
                os.chmod(os.path.join(folder, name), 0o644)
        notes.chmod(0o1777)
        for program in ("init", "launcher"):
            for file in sources.glob(f"serdab/init/bin/*/{program}"):
                file.chmod(0o755)
        patch.setitem(COMMAND_ENVIRONMENT, "PYTHONPATH", str(sources))
        USED_BEFORE.begin(Path(top) / "used", sources)
        yield
        LEDGER.join(notes, "a process of the product")
        assert USED_BEFORE.is_untouched(), "a test wrote into byte code that all tests share"
    assert not LEDGER.repeats, "a nonce was used twice under one key in: " + ", ".join(
        sorted(set(LEDGER.repeats))
    )


class _OfAllWorkers:
    """The controller of several workers: gives each a file, and joins the files at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sn-"))
        self.workers: set[str] = set()
        self.problem = ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:  # noqa: ANN401 - xdist has no types
        self.workers.add(node.gateway.id)
        node.workerinput[_FILE] = os.fspath(self.folder / node.gateway.id)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        ledger = Ledger()
        silent = self.workers - set(os.listdir(self.folder))
        ledger.join(self.folder, "two workers")
        shutil.rmtree(self.folder)
        if ledger.repeats:
            self.problem = "two workers used a nonce twice under one key"
        elif silent:
            self.problem = f"workers that noted no nonces: {', '.join(sorted(silent))}"
        if self.problem and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.problem:
            terminalreporter.write_line(f"FAILED: {self.problem}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_OfAllWorkers())


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = getattr(session.config, "workerinput", {}).get(_FILE)
    if file is not None:
        LEDGER.dump(Path(file))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    LEDGER.test = item.nodeid


#: Appended to ``crypto/aead.py`` of the copy. It writes an entry before the seal, so that what a
#: killed process sealed is known.
_RECORDER = """

def _audit() -> None:
    import hashlib
    import os

    def digest(*parts):
        state = hashlib.blake2b(digest_size=16)
        for part in parts:
            state.update(len(part).to_bytes(8, "little"))
            state.update(part)
        return state.digest()

    fds = {}
    keys = {}
    make, seal, seal_into = RecordCipher.__init__, RecordCipher.seal, RecordCipher.seal_into

    def noted_init(self, material):
        make(self, material)
        keys[id(self)] = bytes(material)

    def note(self, number, plain, aad):
        fd = fds.get(os.getpid())
        if fd is None:
            name = f"{FOLDER}/{os.getpid()}-{os.urandom(8).hex()}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            fd = fds[os.getpid()] = os.open(name, flags, 0o666)
        material = keys[id(self)]
        nonce = int.from_bytes(material[16:], "big") ^ number
        os.write(fd, digest(material[:16], nonce.to_bytes(12, "big")) + digest(plain, aad))

    def noted_seal(self, number, plain, aad):
        note(self, number, plain, aad)
        return seal(self, number, plain, aad)

    def noted_seal_into(self, number, plain, aad, out):
        note(self, number, plain, aad)
        seal_into(self, number, plain, aad, out)

    RecordCipher.__init__ = noted_init
    RecordCipher.seal = noted_seal
    RecordCipher.seal_into = noted_seal_into


_audit()
"""


def make_audited_sources(target: Path, notes: Path) -> Path:
    """Copy the package to ``target`` with a cipher that notes into ``notes``; return the path to
    import it from."""
    source = Path(serdab.__file__).parent
    shutil.copytree(source, target / "serdab", ignore=shutil.ignore_patterns("__pycache__"))
    notes.mkdir()
    aead = target / "serdab" / "crypto" / "aead.py"
    recorder = _RECORDER.replace("{FOLDER}", os.fspath(notes))
    aead.write_text(aead.read_text() + recorder)
    return target


@pytest.fixture
def audited_sources(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(import path, folder of notes) of a copy of the package that audits itself."""
    target, notes = tmp_path / "audited", tmp_path / "notes"
    make_audited_sources(target, notes)
    yield target, notes
    LEDGER.join(notes, LEDGER.test)
