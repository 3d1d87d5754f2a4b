# SPDX-License-Identifier: Apache-2.0
"""Serdab beside gocryptfs and securefs: the same work, the same minute, the same tmpfs."""
