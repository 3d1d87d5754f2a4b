# SPDX-License-Identifier: Apache-2.0
"""What any file system offers, and the two that need no storage format: the union and hostfs.

Above: ``sefs`` implements the layer interfaces; ``fuse`` serves a ``FileSystem``.
Below: ``crypto`` (name positions), ``linux``, ``errors``.
"""
