# SPDX-License-Identifier: Apache-2.0
"""What is damaged of a sealed file system, and how to read on around it.

Above: ``fsck``, ``volumecheck``, ``journal``. Below: ``tree``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from serdab.errors import AuthenticationError, Error, FormatError
from serdab.sefs.page import Item, Page
from serdab.sefs.tree import Tree, load_child
from serdab.structs import field, mutable


@mutable
class Report:
    """What a check found. ``damaged`` maps a path (or what has none) to what is wrong with it."""

    files: int = 0
    directories: int = 0
    content_bytes: int = 0
    damaged: dict[str, str] = field(default_factory=dict)

    def is_clean(self) -> bool:
        """Return whether nothing is damaged."""
        return not self.damaged

    def add(self, subject: str, problem: object) -> None:
        """Note a problem; the first one of a subject is kept."""
        self.damaged.setdefault(subject, str(problem))


def _ignore(_pointer: bytes) -> None:
    return


def tolerant_items(
    tree: Tree, report: Report, note_page: Callable[[bytes], None] = _ignore
) -> Iterator[Item]:
    """Yield all items that can be reached, noting the pages that cannot be read.

    ``note_page`` is called with the pointer to each page that can.
    """
    if not tree.root.pointer:
        return
    try:
        root = tree.store.load_page(tree.root.pointer, level=tree.root.level)
    except (AuthenticationError, FormatError) as exc:
        report.add("tree root", exc)
        return
    note_page(tree.root.pointer)
    stack: list[Page] = [root]
    while stack:
        page = stack.pop()
        if page.level == 0:
            yield from page.items()
            continue
        for index in reversed(range(len(page.keys))):
            try:
                stack.append(load_child(tree.store, page, index))
            except (AuthenticationError, FormatError) as exc:
                ino = int.from_bytes(page.keys[index][:8], "big")
                report.add(f"tree page from inode {ino} on", exc)
            else:
                note_page(page.value(index))


def refusal(exc: AuthenticationError | FormatError, label: str, what: str) -> Error:
    """Return the error that says which part of a volume does not verify, or cannot be read."""
    return type(exc)(
        exc.message,
        subject=exc.subject or f"{label}, {what}",
        expected=exc.expected,
        found=exc.found,
        hint=exc.hint or "the storage changed it; restore the volume from a backup",
    )
