# SPDX-License-Identifier: Apache-2.0
"""Serdab: programs in sealed, measured images, booted through a chain that verifies each stage."""
