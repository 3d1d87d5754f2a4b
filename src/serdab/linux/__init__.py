# SPDX-License-Identifier: Apache-2.0
"""One thin function per system call that Python's standard library lacks."""
