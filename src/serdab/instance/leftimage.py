# SPDX-License-Identifier: Apache-2.0
"""Whether a sealed image looks as the last build left it: header, size and time.

The rest is verified where it is read: what was changed there, and its time put back, is not seen.

Above: ``build``. Below: ``sefs.imageformat``.
"""

from __future__ import annotations

import os

from serdab.errors import FormatError
from serdab.instance.fingerprint import Sealed
from serdab.linux.dirfd import DirFd
from serdab.sefs.imageformat import HEADER_BYTES, header_mac, parse_header


def deviation_of(root: DirFd, image: str, sealed: Sealed) -> str:
    """Return in what way an image below ``root`` is another one than was sealed; "" for none."""
    fd = root.open(image, os.O_RDONLY)
    try:
        status, raw = os.fstat(fd), os.pread(fd, HEADER_BYTES, 0)
    finally:
        os.close(fd)
    try:
        header = parse_header(raw)
    except FormatError:
        return "its header cannot be read"
    if header_mac(raw, header) != sealed.root_mac:
        return "another header"
    if header.total_size != status.st_size:
        return f"{status.st_size} bytes of {header.total_size}"
    return "written to since" if status.st_mtime_ns > sealed.written_ns else ""
