# SPDX-License-Identifier: Apache-2.0
"""The kernel process: boot, sandbox, notifications, programs; and the fs server processes.

Above: ``pal``, ``instance``. Below: ``trust``, ``fuse``.
"""
