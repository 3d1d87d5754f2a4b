# SPDX-License-Identifier: Apache-2.0
"""Images of format version 2 are frozen: what was written once is read for ever.

A failure here is never mended by new golden files: a change of the format is a new version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from serdab.crypto.hashes import noise
from serdab.instance.check import check_image_at
from serdab.sefs import keyspace as ks
from serdab.sefs.image import Image, open_image
from serdab.sefs.imageformat import HEADER_BYTES, R_DATA, R_PAGE, V2, parse_header
from serdab.sefs.imagekeys import ImageKeys
from serdab.vfs.acl import dump_acl
from tests.vectors.test_format_v1 import KEY, content
from tools.make_golden import ACLS, IMAGES, make_image, make_more

GOLDEN = Path(__file__).parents[1] / "images" / "v2"
MACS = {
    name: bytes.fromhex(mac) for name, mac in json.loads((GOLDEN / "macs.json").read_text()).items()
}
NAMES = pytest.mark.parametrize("name", IMAGES)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("golden") / "source"
    make_more(top)
    return top


@pytest.fixture
def image(name: str) -> Iterator[Image]:
    key = IMAGES[name][0]
    image = open_image(GOLDEN / name, key=key, expected_mac=MACS[name])
    yield image
    image.close()


def find(image: Image, path: str) -> int:
    ino = 1
    for name in path.encode().split(b"/"):
        entry = image.dirent(ino, name)
        assert entry is not None, path
        ino = entry.ino
    return ino


@NAMES
def test_they_are_read(name: str, image: Image, source: Path) -> None:
    assert image.version == V2
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink():
            inside = str(path.relative_to(source))
            assert content(image, inside) == path.read_bytes(), inside
    assert content(image, "etc/image_config.json") == b"{}\n"
    assert image.target(find(image, "link")) == b"bin/tail"
    for named, acls in ACLS.items():
        ino = find(image, named.decode())
        assert dict(image.xattrs(ino)) == {
            attribute: b"\1" + dump_acl(acl) for attribute, acl in acls.items()
        }
    records = image.inode(find(image, "records"))
    assert records is not None
    assert ks.record_size(records.flags, 0) == 4096
    for folder in ("bin", "empty", "etc", "proc"):
        inode = image.inode(find(image, folder))
        assert inode is not None
        assert inode.parent_ino == 1


@NAMES
def test_they_verify_to_the_last_byte(name: str) -> None:
    checked = check_image_at(GOLDEN / name, IMAGES[name][0], MACS[name])
    assert checked.is_clean(), checked.report


@NAMES
def test_their_tree_still_builds_their_bytes(name: str, source: Path, tmp_path: Path) -> None:
    golden = (GOLDEN / name / "image.sefs").read_bytes()
    builder = parse_header(golden[:HEADER_BYTES]).builder
    if builder and builder != "libzstd " + ".".join(map(str, zstandard.ZSTD_VERSION)):
        return  # equal bytes are promised per libzstd; the reading test above holds for all
    assert make_image(source, tmp_path, name).root_mac == MACS[name]
    assert (tmp_path / "image.sefs").read_bytes() == golden


def test_derived_keys_are_frozen() -> None:
    """These may not change: they are the on-disk format."""
    keys = ImageKeys(KEY, V2)
    header = bytes(range(256)) * 16
    data, pages = keys.cipher(R_DATA, b"id"), keys.cipher(R_PAGE, b"id")
    found = {
        "image data": keys.schedule.derive(b"image data", b"id", 28).hex(),
        "image pages": keys.schedule.derive(b"image pages", b"id", 28).hex(),
        "image data identifier": keys.identity(R_DATA).hex(),
        "image pages identifier": keys.identity(R_PAGE).hex(),
        "image key check": keys.check(header).hex(),
        "image padding": keys.padding(b"id", 5, 11).hex(),
        "record of data": data.seal(7, b"plain", b"aad").hex(),
        "record of pages": pages.seal(7, b"plain", b"aad").hex(),
        "noise": noise(bytes(range(32)), 64, 8).hex(),
    }
    assert len(set(found.values())) == len(found)
    assert found == json.loads((Path(__file__).parent / "image-keys-v2.json").read_text())
