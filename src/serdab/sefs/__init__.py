# SPDX-License-Identifier: Apache-2.0
"""The sealed file system: read-only images and writable volumes on storage nobody trusts.

Above: ``trust``, ``fuse``, ``libos``, ``instance``. Below: ``vfs`` (whose layer interfaces it
implements), ``crypto``.

Reading order: ``keyspace`` (what is stored), ``page`` and ``tree`` (how it is found),
``imageformat`` and ``image`` (the read-only file), ``imagewalk``, ``packwriter`` and ``imagebuild``
(who writes it), ``anchor``, ``segment``, ``intentlog``, ``content`` and ``volume`` (the writable
directory), ``hostdir`` (the only door to the host). Nothing is imported here: an fs server that
only reads must not pay for the builder.
"""
