# SPDX-License-Identifier: Apache-2.0
"""Service mode: an instance that is booted once and runs many programs, until it is stopped.

``server`` owns the instance, ``starter`` brings it up, ``client`` and ``terminal`` stand for one
program in the foreground, ``place`` says where they meet, ``unit`` writes what systemd needs.
"""
