# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.mount_serdab create|mount CIPHER [MOUNT_POINT]``: Serdab's side of the bench.

Serves a union of an empty encrypted image and an encrypted writable volume at a host directory,
with the same code that serves the root FS of an instance. Prints ``ready`` once mounted and ends
when it is unmounted and everything is durable. With ``SERDAB_BENCH_PROFILE=FILE`` each server
writes where its time went to FILE.PID (for ``python -m pstats``); the figures then mean little.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serdab.keys import Key

if TYPE_CHECKING:
    from serdab.vfs.api import FileSystem

READY: Final = "ready"
_KEY: Final = Key(bytes(range(16)))


def create(cipher: Path) -> None:
    """Make the empty lower image; the volume makes itself at the first change."""
    from serdab.sefs.imagebuild import build_image

    (cipher / "upper").mkdir()
    with tempfile.TemporaryDirectory() as empty:
        os.chmod(empty, 0o755)  # the root directory of the file system under test
        info = build_image(Path(empty), cipher / "lower", key=_KEY)
    (cipher / "root-mac").write_text(info.root_mac.hex())


def open_file_system(cipher: Path) -> FileSystem:
    """Return what is to be served."""
    from serdab.sefs.image import open_image
    from serdab.sefs.volume import open_volume
    from serdab.vfs.union import Union

    lower = open_image(cipher / "lower", key=_KEY, expected_mac=None)
    upper = open_volume(cipher / "upper", key=_KEY, lower=lower, create=True)
    return Union(upper, lower)


def device_number(path: Path) -> int:
    """Return the ``st_dev`` of a mount without asking its server, which is not serving yet."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            if fields[4] == str(path):
                major, minor = fields[2].split(":")
                return os.makedev(int(major), int(minor))
    raise FileNotFoundError(f"not mounted: {path}")


def mount(cipher: Path, mount_point: Path) -> None:
    """Serve until unmounted, then make everything durable."""
    from serdab.fuse.mounting import mount_host, raise_read_ahead
    from serdab.fuse.session import Session

    fs = open_file_system(cipher)
    fd = mount_host(mount_point, fsname="serdab-bench", allow_other=os.geteuid() == 0)
    try:
        raise_read_ahead(device_number(mount_point))
        print(READY, flush=True)
        session = Session(fd, fs)
        profile = os.environ.get("SERDAB_BENCH_PROFILE")
        if profile:
            import cProfile

            cProfile.runctx("session.run()", {}, {"session": session}, f"{profile}.{os.getpid()}")
        else:
            session.run()
    finally:
        os.close(fd)
        fs.close()


def main(argv: list[str]) -> int:
    match argv:
        case ["create", cipher]:
            create(Path(cipher))
        case ["mount", cipher, mount_point]:
            mount(Path(cipher), Path(mount_point))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
