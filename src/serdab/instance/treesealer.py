# SPDX-License-Identifier: Apache-2.0
"""Seals the source trees of an instance, or takes over what did not change since the last build.

Above: ``build``. Below: ``sefs.imagebuild``, ``fingerprint``, ``publish``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Final, final

from serdab.config.imageform import ImageForm
from serdab.errors import UsageError
from serdab.instance import publish
from serdab.instance.epoch import source_date_epoch
from serdab.instance.fingerprint import Sealed, fingerprint
from serdab.instance.layout import Instance
from serdab.instance.leftimage import deviation_of
from serdab.instance.leftout import LeftOut
from serdab.instance.owners import Owner, load_owners
from serdab.instance.signedrecord import Files, Signed, SignedTree, stamps
from serdab.keys import Key
from serdab.linux.dirfd import DirFd
from serdab.sefs.imagebuild import ZSTD_LEVEL, ImageOptions, build_image
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.sefs.imagewalk import Additions
from serdab.trust.measurement import code_digest

_BUILD_PREFIX: Final = "build/"


@final
class TreeSealer:
    """Seals trees into the staging directory, or takes over what did not change.

    Without a staging directory it only looks. ``owners``: of paths in a tree, by the tree's name,
    where ``<tree>.owners`` beside it says nothing.
    """

    def __init__(
        self,
        instance: Instance,
        staging: DirFd | None,
        record: dict[str, Sealed],
        progress: Callable[[int], None] | None,
        say: Callable[[str], None],
        owners: Mapping[str, Mapping[str, Owner]] | None = None,
    ) -> None:
        self._instance = instance
        self._say = say
        self._owners = owners or {}
        self._staging = staging
        self._record = record
        self._progress = progress
        self._unchanged: list[str] = []
        self._files: dict[str, Files | None] = {}
        self._macs: dict[str, bytes] = {}
        self.outcome: dict[str, Sealed | None] = {}
        self.sealed: list[str] = []

    def seal(
        self,
        name: str,
        source: str,
        output: str,
        key: Key | None,
        additions: Additions,
        form: ImageForm | None = None,
    ) -> bytes:
        """Return the root MAC of the tree."""
        try:
            root_mac = self._seal(name, source, output, key, additions, form or ImageForm())
            self._macs[name] = root_mac
            return root_mac
        except PermissionError as exc:
            path = os.fsdecode(exc.filename or "")
            if not path.startswith(f"{self._instance.at(source)}/"):
                raise
            raise UsageError(
                "the tree holds what cannot be read",
                stage="build",
                subject=path,
                expected=f"what user id {os.geteuid()} may read",
                found=os.strerror(exc.errno or 0),
                hint="change its mode or owner, or remove it from the tree",
            ) from exc

    def _seal(
        self,
        name: str,
        source: str,
        output: str,
        key: Key | None,
        additions: Additions,
        form: ImageForm,
    ) -> bytes:
        root = self._instance.root
        # What a BOM declares is about this image; what came with the tree is of elsewhere.
        owners = {**self._owners.get(name, {}), **load_owners(root, source)}
        left_out = LeftOut(source, self._say)
        options = ImageOptions(
            left_out=lambda path, what: left_out.note(f"{source}/{os.fsdecode(path)}", what),
            clamp_s=source_date_epoch(),
            owner=lambda path: owners.get(os.fsdecode(path), (0, 0)),
            zstd_level=ZSTD_LEVEL if form.is_compressed else 0,
            padding=form.padding_bytes,
        )
        with root.directory(source) as tree:
            # What changes after this moment differs from the fingerprint at the next build.
            parameters, seen = _parameters(options, additions, owners), dict[str, str]()
            found = fingerprint(tree, parameters=parameters, key=key, seen=seen)
            self._files[name] = stamps(seen, owners)
            old = self._record.get(name)
            is_same = old is not None and found == old.fingerprint
            # A check tells of sources, not of what became of build/.
            if is_same and self._staging is not None:
                is_same = self._is_as_left(f"{output}/{IMAGE_NAME}", old)
            if old is not None and is_same:
                self.outcome[name] = old
                self._unchanged.append(output)
                return old.root_mac
            if self._staging is None:
                return b""  # it would get one
            with self._staging.make(staged(output)) as out:
                info = build_image(
                    tree,
                    out,
                    key=key,
                    options=options,
                    additions=additions,
                    progress=self._progress,
                )
                written_ns = os.stat(IMAGE_NAME, dir_fd=out.fd).st_mtime_ns
        left_out.end()
        self.outcome[name] = None if found is None else Sealed(found, info.root_mac, written_ns)
        self.sealed.append(name)
        return info.root_mac

    def _is_as_left(self, image: str, old: Sealed | None) -> bool:
        if old is None or not self._instance.root.is_file(image):
            return False
        found = deviation_of(self._instance.root, image, old)
        if found:
            self._say(
                f"{self._instance.at(image)}: not as the last build left it ({found}): sealed "
                "anew; `build -f` seals both trees whatever they look like"
            )
        return not found

    def to_be_signed(self, raw_config: bytes) -> Signed:
        """Return what is going to be signed, in terms of the sources."""
        image, initfs = (
            SignedTree(self._macs[name].hex(), self._files[name]) for name in ("image", "initfs")
        )
        return Signed(json.loads(raw_config), image, initfs)

    def take_over_unchanged(self) -> None:
        """Copy what was not sealed again into the staging directory."""
        if self._staging is None:
            return
        for output in self._unchanged:
            with self._staging.make(staged(output)) as target:
                publish.copy_sealed(self._instance.root, output, target)


def staged(output: str) -> str:
    """Return where something of ``build/`` lies in the staging directory."""
    return output.removeprefix(_BUILD_PREFIX)


def _parameters(options: ImageOptions, additions: Additions, owners: Mapping[str, Owner]) -> bytes:
    """Return everything beside tree and key that decides the bytes of an image."""
    import zstandard

    values = (
        str(code_digest()),
        zstandard.ZSTD_VERSION,
        options.chunk_size,
        options.page_size,
        int(options.hash),
        options.zstd_level,
        options.padding,
        options.clamp_s,
        sorted(additions.directories.items()),
        sorted(additions.files.items()),
        sorted(owners.items()),
    )
    return repr(values).encode()
