# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.mount_serdab create|mount CIPHER [MOUNT_POINT]``: Serdab's side of the bench.

Serves a union of an empty encrypted image and an encrypted writable volume at a host directory,
with the same code that serves the root FS of an instance. Prints ``ready`` once mounted and ends
when it is unmounted and everything is durable. With ``SERDAB_BENCH_PROFILE=FILE`` each server
writes where its time went to FILE.PID (for ``python -m pstats``); the figures then mean little.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serdab.keys import Key

if TYPE_CHECKING:
    from serdab.sefs.imagebuild import ImageOptions
    from serdab.vfs.api import FileSystem

READY: Final = "ready"
_CHUNK_BYTES: Final = "chunk-bytes"
_KEY: Final = Key(bytes(range(16)))


def create(
    cipher: Path,
    *,
    source: Path | None = None,
    image: ImageOptions | None = None,
    chunk_bytes: int | None = None,
) -> None:
    """Make the lower image, empty unless there is a source; the volume makes itself when written.

    ``chunk_bytes`` is the chunk size of the volume; what is not given is what an instance uses.
    """
    from serdab.sefs.imagebuild import ImageOptions, build_image

    (cipher / "upper").mkdir()
    if chunk_bytes is not None:
        (cipher / _CHUNK_BYTES).write_text(str(chunk_bytes))
    with tempfile.TemporaryDirectory() as empty:
        os.chmod(empty, 0o755)  # the root directory of the file system under test
        top = source or Path(empty)
        info = build_image(top, cipher / "lower", key=_KEY, options=image or ImageOptions())
    (cipher / "root-mac").write_text(info.root_mac.hex())


def open_file_system(cipher: Path) -> FileSystem:
    """Return what is to be served."""
    from serdab.sefs.image import open_image
    from serdab.sefs.volume import CHUNK_SIZE, open_volume
    from serdab.vfs.union import Union

    lower = open_image(cipher / "lower", key=_KEY, expected_mac=None)
    asked = cipher / _CHUNK_BYTES
    chunk_size = int(asked.read_text()) if asked.exists() else CHUNK_SIZE
    upper = open_volume(cipher / "upper", key=_KEY, lower=lower, create=True, chunk_size=chunk_size)
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
        # As the server of an instance does.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
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
