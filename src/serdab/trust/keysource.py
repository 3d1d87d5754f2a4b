# SPDX-License-Identifier: Apache-2.0
"""Where the key of a writable layer comes from.

* an image key was given and is not built in: that key;
* it is built into the init FS, so it is public: a mix of it and the automatic key;
* none was given: the automatic key of the platform, for this signer and product, with
  ``autokey_policy`` for this MRENCLAVE too.

The source is kept with the volume in authenticated clear, so that a key that does not fit can be
answered with what differs. It holds no secret. Above: ``libos``. Below: ``platform``, ``config``.

On-disk format:
    The source is canonical JSON: ``kind`` (``user``, ``mixed``, ``automatic``) and, but for
    ``user``, ``platform``, ``mrsigner``, ``product_id`` and ``mrenclave`` (empty: not bound to it).
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Final

from serdab.config.boot import BootConfig
from serdab.keys import KEY_BYTES, Key
from serdab.trust.measurement import Digest
from serdab.trust.platform import KeyPolicy, Platform

_MIX: Final = b"serdab mixed key 1\n"


@dataclass(frozen=True, slots=True)
class SourcedKey:
    """A key and the words for where it comes from."""

    key: Key
    source: bytes


def upper_key(
    config: BootConfig,
    *,
    image_key: Key | None,
    mrsigner: Digest,
    mrenclave: Digest,
    platform: Platform,
) -> SourcedKey:
    """Return the key of the writable layer of a root FS.

    Raises:
        WrongKeyError: the platform's secret belongs to another machine.
    """
    if image_key is not None and not config.builtin_image_key:
        return SourcedKey(image_key, _dump({"kind": "user"}))
    bound = config.upper.autokey_policy != 0
    policy = KeyPolicy(mrsigner, config.product_id, mrenclave if bound else None)
    automatic = platform.seal_key(policy)
    fields: dict[str, object] = {
        "kind": "automatic",
        "platform": platform.name,
        "mrsigner": str(mrsigner),
        "product_id": config.product_id,
        "mrenclave": str(mrenclave) if bound else "",
    }
    if image_key is None:
        return SourcedKey(automatic, _dump(fields))
    mixed = hmac.digest(_MIX + image_key.raw(), automatic.raw(), "sha256")[:KEY_BYTES]
    return SourcedKey(Key(mixed), _dump({**fields, "kind": "mixed"}))


def _dump(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
