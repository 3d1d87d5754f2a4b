# SPDX-License-Identifier: Apache-2.0
"""Takes each check out of the store in turn: some test of the attacks must fail each time.

A check that no test misses when it is gone is one that nobody would miss in a review either. The
mutants live in copies of the package; the tests run on a copy in a process of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import serdab
from tests.harness.leftovers import SESSION_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
VOLUME = "tests/attack/test_volume_tampering.py"
IMAGE = "tests/attack/test_image_tampering.py"
REBIND = "tests/crash/test_rebind.py"
HOSTILE = "tests/attack/test_hostile_images.py"
CHAIN = "tests/unit/trust/test_chain.py"
FILTER = "tests/unit/libos/test_filter.py"
PROGRAM = "tests/unit/libos/test_caller_program.py"
STREAMS = "tests/boot/test_streams.py"
TARGETS = "tests/mount/test_targets.py"
BUILDS = "tests/unit/trust/test_older_builds.py"
SHARING = "tests/store/test_sharing.py"
HOSTILE_VOLUME = "tests/attack/test_hostile_volumes.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One check less: ``old`` becomes ``new`` in a file, and ``tests`` must notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    extra: str = ""
    """Appended to the file."""


_UNVERIFIED = '''

def _unverified(self, number, sealed):
    """Decrypt without looking at the tag (NIST SP 800-38D, 7.1: counter mode from 2 on)."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    nonce = (self._iv ^ number).to_bytes(12, "big") + (2).to_bytes(4, "big")
    plain = Cipher(algorithms.AES(_RAW[id(self)]), modes.CTR(nonce)).decryptor()
    return plain.update(bytes(sealed[:-16]))


_RAW = {}
_make = RecordCipher.__init__


def _keep(self, material):
    _make(self, material)
    _RAW[id(self)] = material[:16]


RecordCipher.__init__ = _keep
'''

MUTANTS: dict[str, Mutant] = {
    "tag of a record": Mutant(
        "crypto/aead.py",
        """sealed, aad)
        except InvalidTag:
            raise AuthenticationError("the tag does not verify") from None
""",
        """sealed, aad)
        except InvalidTag:
            return _unverified(self, number, sealed)
""",
        (VOLUME, "-k", "flipped"),
        _UNVERIFIED,
    ),
    "tag of a record read in place": Mutant(
        "crypto/aead.py",
        """            out[:] = bytes(len(out))
            raise AuthenticationError("the tag does not verify") from None
""",
        """            out[:] = _unverified(self, number, sealed)
""",
        (VOLUME, "-k", "flipped"),
        _UNVERIFIED,
    ),
    "tag that the parent names": Mutant(
        "sefs/segment.py",
        """        if not hmac.compare_digest(view[stored - TAG_BYTES :], tag):
            raise""",
        """        if False:
            raise""",
        (VOLUME, "-k", "forked"),
    ),
    "tags of a run of records": Mutant(
        "sefs/segment.py",
        """            if not compare(sealed[length:], tag):
                raise""",
        """            if False:
                raise""",
        (VOLUME, "-k", "forked"),
    ),
    "hash of a record": Mutant(
        "sefs/imagerecords.py",
        "if not hmac.compare_digest(self._digest(view), digest):",
        "if False:",
        (IMAGE, "-k", "flipped or gmac", HOSTILE),
    ),
    "root MAC": Mutant(
        "sefs/image.py",
        "if expected_mac is not None and not hmac.compare_digest(mac, expected_mac):",
        "if False:",
        (IMAGE, "-k", "another_image or flipped"),
    ),
    "length of the image": Mutant(
        "sefs/image.py",
        "if header.total_size != file.size():",
        "if False:",
        (IMAGE, "-k", "appended"),
    ),
    "mode asked for without a key": Mutant(
        "sefs/image.py",
        "        if header.mode != Mode.INTEGRITY:\n            raise",
        "        if False:\n            raise",
        (IMAGE, "-k", "opener_decides"),
    ),
    "mode asked for with a key": Mutant(
        "sefs/image.py",
        "    if header.mode != Mode.ENCRYPTED:\n        raise",
        "    if False:\n        raise",
        (IMAGE, "-k", "opener_decides"),
    ),
    "a MAC for what has no key": Mutant(
        "sefs/image.py",
        "        if expected_mac is None:\n            raise",
        "        if False:\n            raise",
        (IMAGE, "-k", "opener_decides"),
    ),
    "declared length of a frame": Mutant(
        "sefs/inflate.py",
        "if not 0 < declared <= limit:",
        "if False:",
        (HOSTILE, "-k", "frame"),
    ),
    "pages that are file data": Mutant(
        "sefs/image.py",
        "            if where.pack != META_PACK:\n                raise",
        "            if False:\n                raise",
        (HOSTILE, "-k", "pointer"),
    ),
    "pages that are compressed": Mutant(
        "sefs/image.py",
        "if where.flags and self.version != V1:",
        "if False:",
        (HOSTILE, "-k", "version_1_alone"),
    ),
    "flags of an extent": Mutant(
        "sefs/image.py",
        "extent.flags not in self._extent_flags",
        "False",
        (HOSTILE, "-k", "version_2_has_more or version_1_does_not"),
    ),
    "compression that the header denies": Mutant(
        "sefs/inflate.py",
        "if not self._allowed:",
        "if False:",
        (IMAGE, "-k", "unknown_version"),
    ),
    "length of small content": Mutant(
        "sefs/inflate.py",
        "if mark != PLAIN or len(rest) > limit:",
        "if mark != PLAIN:",
        (HOSTILE, "-k", "version_2_has_more"),
    ),
    "parent of a directory of an image": Mutant(
        "sefs/image.py",
        "if self.version != V1 and not inode.parent_ino and",
        "if False and",
        (HOSTILE, "-k", "version_2_has_more"),
    ),
    "content of an image that is bound to": Mutant(
        "sefs/rebind.py",
        "if one[:count] != other[:count]:",
        "if False:",
        (REBIND, "-k", "difference"),
    ),
    "records of an image that is bound to": Mutant(
        "sefs/rebind.py",
        "if expected != found:",
        "if False:",
        (REBIND, "-k", "difference"),
    ),
    "names of an image that is bound to": Mutant(
        "sefs/rebind.py",
        "if value != other[1]:",
        "if False:",
        (REBIND, "-k", "difference"),
    ),
    "targets of an image that is bound to": Mutant(
        "sefs/rebind.py",
        "if stat.S_ISLNK(inode.mode) and old.target(ino) != new.target(ino):",
        "if False:",
        (REBIND, "-k", "difference"),
    ),
    "zeros of the header": Mutant(
        "sefs/imageformat.py",
        "if any(raw[_HEADER.size :]) or (zero and version != V1):",
        "if False:",
        (HOSTILE, "-k", "header"),
    ),
    "unknown version": Mutant(
        "sefs/imageformat.py",
        "if version not in _MAC_LABELS:",
        "if False:",
        (IMAGE, "-k", "unknown_version"),
    ),
    "unknown suite": Mutant(
        "sefs/imageformat.py",
        "if mode not in (1, 2) or algorithm not in (1, 2) or compression not in (0, 1):",
        "if False:",
        (IMAGE, "-k", "unknown_version"),
    ),
    "key check of a volume": Mutant(
        "sefs/anchor.py",
        'if not hmac.compare_digest(keys.derive(b"key check"), clear.check):',
        "if False:",
        (VOLUME, "-k", "wrong_keys or anchor"),
    ),
    "anchor that this session left": Mutant(
        "sefs/anchor.py",
        "if not hmac.compare_digest(found[-TAG_BYTES:], tag):",
        "if False:",
        (VOLUME, "-k", "rolled_back_while"),
    ),
    "slot of an anchor": Mutant(
        "sefs/anchor.py",
        "    if state.epoch % 2 != slot:\n        raise",
        "    if False:\n        raise",
        (HOSTILE_VOLUME, "-k", "slot"),
    ),
    "emptied slot": Mutant(
        "sefs/anchor.py",
        "if empty >= 0 and best[0].state.epoch:",
        "if False:",
        (VOLUME, "-k", "overwritten"),
    ),
    "version of a volume": Mutant(
        "sefs/anchor.py",
        "    if version not in VERSIONS:\n        raise",
        "    if False:\n        raise",
        (HOSTILE_VOLUME, "-k", "version"),
    ),
    "slots that version 1 does not have": Mutant(
        "sefs/slots.py",
        "    if version == ks.V1:\n        return False\n",
        "",
        (SHARING, "-k", "refused"),
    ),
    "all who name a record that moves": Mutant(
        "sefs/datarecords.py",
        "        for owner in others:\n            self.share(first, owner)\n",
        "",
        (SHARING, "-k", "repoints"),
    ),
    "references of a commit": Mutant(
        "sefs/references.py",
        "            if not fits_before or not fits_after:\n",
        "            if False:\n",
        (HOSTILE_VOLUME, "-k", "references"),
    ),
    "parent of a directory": Mutant(
        "sefs/fsck.py",
        "if inode.parent_ino not in (0, ino):",
        "if False:",
        ("tests/store/test_parents.py",),
    ),
    "sequence and chain of a commit": Mutant(
        "sefs/intentlog.py",
        "if head is None or head[0] != sequence + 1 or head[3] != chain:",
        "if head is None:",
        (HOSTILE_VOLUME, "-k", "commit"),
    ),
    "gap in the log, at a header": Mutant(
        "sefs/intentlog.py",
        "            _check_tail(file, cipher, page, total, sequence + 1)\n",
        "",
        (VOLUME, "-k", "log_records or flipped"),
    ),
    "gap in the log, at a body": Mutant(
        "sefs/intentlog.py",
        "            _check_tail(file, cipher, page + 1, total, sequence + 1)\n",
        "",
        (VOLUME, "-k", "log_records or flipped"),
    ),
    "lower layer of a volume": Mutant(
        "sefs/lowerbinding.py",
        "    if state.lower == found:\n",
        "    if True:\n",
        (HOSTILE_VOLUME, "-k", "lower"),
    ),
    "level of a page": Mutant(
        "sefs/page.py",
        "if got_level != level or zero != 0 or count == 0:",
        "if count == 0:",
        (HOSTILE, "-k", "malformed or level"),
    ),
    "bytes of a page that belong to no item": Mutant(
        "sefs/page.py",
        "if value_base + value_ends[-1] != len(raw):",
        "if False:",
        (HOSTILE, "-k", "malformed"),
    ),
    "order of keys": Mutant(
        "sefs/page.py",
        "if keys[i - 1] >= keys[i]:",
        "if False:",
        (HOSTILE, "-k", "malformed"),
    ),
    "overlapping values": Mutant(
        "sefs/page.py",
        "        if end < previous:\n            raise",
        "        if False:\n            raise",
        (HOSTILE, "-k", "malformed"),
    ),
    "first key of a child": Mutant(
        "sefs/tree.py",
        "    if child.keys[0] != parent.keys[index]:\n        raise",
        "    if False:\n        raise",
        (HOSTILE, "-k", "child"),
    ),
    "last key of a child": Mutant(
        "sefs/tree.py",
        "    if index + 1 < len(parent.keys) and child.keys[-1] >= parent.keys[index + 1]:\n"
        "        raise",
        "    if False:\n        raise",
        (HOSTILE, "-k", "child"),
    ),
    "names": Mutant(
        "sefs/keyspace.py",
        "if not 1 <= len(name) <= NAME_MAX or _SLASH in name or 0 in name "
        'or name in (b".", b".."):',
        "if False:",
        (HOSTILE, "-k", "names_that_lead"),
    ),
    "regular host files": Mutant(
        "sefs/hostdir.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        (VOLUME, "-k", "something_else"),
    ),
    "host files of one name": Mutant(
        "sefs/hostdir.py",
        "elif status.st_nlink != 1:",
        "elif False:",
        (VOLUME, "-k", "something_else"),
    ),
    "no symbolic links": Mutant(
        "sefs/hostdir.py",
        "os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK",
        "os.O_CLOEXEC | os.O_NONBLOCK",
        (VOLUME, "-k", "something_else"),
    ),
    "MAC that init requires of the configured image": Mutant(
        "trust/chain.py",
        "        if caller_mac is not None and not runtime:\n",
        "        if False:\n",
        (CHAIN,),
    ),
    "MAC that init requires of its own image": Mutant(
        "trust/chain.py",
        "            expected = caller_mac\n",
        "            expected = root_mac\n",
        (CHAIN,),
    ),
    "known numbers": Mutant(
        "libos/filter.py", "(424, 469)", "(424, 470)", (FILTER, "-k", "known_numbers")
    ),
    "known numbers, the gap": Mutant(
        "libos/filter.py", "(0, 336)", "(0, 337)", (FILTER, "-k", "known_numbers")
    ),
    "refused numbers": Mutant(
        "libos/filter.py", "            321,  # bpf\n", "            322,  # bpf\n", (FILTER,)
    ),
    "link to the program's own file": Mutant(
        "libos/filter.py", '    answers[numbers.prctl] = "prctl"\n', "", (FILTER,)
    ),
    "program that runs, not the one its link named": Mutant(
        "libos/callerplace.py",
        "        mountrules.check_program(policy, program)",
        "        pass",
        (PROGRAM,),
    ),
    "program in a mount of the tree": Mutant(
        "libos/callerplace.py", "        if not in_tree:\n", "        if False:\n", (PROGRAM,)
    ),
    "user namespace of a program that is told apart": Mutant(
        "libos/mounts.py",
        "!= self._sandbox.user_namespace:",
        "== '':",
        ("tests/mount/test_policy.py", "-k", "told_apart"),
    ),
    "init that cannot be executed": Mutant(
        "instance/build.py",
        "(stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & 0o111)",
        "stat.S_ISREG(status.st_mode)",
        ("tests/cli/test_init_program.py", "-k", "build"),
    ),
    "owner of a mount's target": Mutant(
        "libos/mounts.py",
        "        if not is_owner(user, found):\n            raise",
        "        if False:\n            raise",
        (TARGETS, "-k", "covers and root"),
    ),
    "owner of a host directory": Mutant(
        "libos/users.py",
        "    if owner is None or is_owner(owner, found):\n",
        "    if True:\n",
        (TARGETS, "-k", "of_the_host and root"),
    ),
    "who mounted what is unmounted": Mutant(
        "libos/mounts.py",
        "            if user is not None and mount.user != user:\n",
        "            if False:\n",
        (TARGETS, "-k", "unmounts and root"),
    ),
    "streams that a client of the service sends": Mutant(
        "libos/kernel.py",
        "        check_streams(stdio)\n        own_session",
        "        own_session",
        (STREAMS, "-k", "service and root"),
    ),
    "older build": Mutant(
        "trust/freshness.py", "        elif ours < known:\n", "        elif False:\n", (BUILDS,)
    ),
}

IN_CI = (
    "tag of a record read in place",
    "tag that the parent names",
    "hash of a record",
    "root MAC",
    "gap in the log, at a header",
    "names",
    "MAC that init requires of the configured image",
    "known numbers",
    "program that runs, not the one its link named",
    "init that cannot be executed",
)


def notices(mutant: Mutant, folder: Path) -> bool:
    """Return whether the tests fail on a copy of the package without the check."""
    source = Path(serdab.__file__).parent
    shutil.copytree(source, folder / "serdab", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "serdab" / mutant.file
    text = file.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} no longer has this check as it was"
    file.write_text(text.replace(mutant.old, mutant.new) + mutant.extra)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-m", "not soak"]
    env = {**os.environ, "PYTHONPATH": os.fspath(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    # A session of its own: what the outer one keeps running is no failure of a mutant.
    env.pop(SESSION_VARIABLE, None)
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider", *mutant.tests],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    # 1: tests failed. Anything else (nothing collected, an error of pytest) shows nothing.
    assert result.returncode in (0, 1), result.stdout[-3000:] + result.stderr[-1000:]
    return result.returncode == 1


def test_the_copy_that_is_run_is_the_copy(tmp_path: Path) -> None:
    """Were the package itself run, no mutant would ever be noticed; unchanged, nothing fails."""
    nothing = Mutant("crypto/aead.py", "TAG_BYTES: Final = 16", "TAG_BYTES: Final = 16",
                     (VOLUME, "-k", "wrong_keys"))  # fmt: skip
    assert not notices(nothing, tmp_path / "same")
    broken = Mutant("crypto/aead.py", "TAG_BYTES: Final = 16", "TAG_BYTES: Final = 15",
                    (VOLUME, "-k", "wrong_keys"))  # fmt: skip
    with pytest.raises(AssertionError):
        assert not notices(broken, tmp_path / "broken")


@pytest.mark.parametrize("name", IN_CI)
def test_a_check_taken_out_is_noticed(name: str, tmp_path: Path) -> None:
    assert notices(MUTANTS[name], tmp_path), f"nothing fails without the check: {name}"


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in IN_CI])
def test_every_other_check_taken_out_is_noticed(name: str, tmp_path: Path) -> None:
    assert notices(MUTANTS[name], tmp_path), f"nothing fails without the check: {name}"
