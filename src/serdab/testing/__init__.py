# SPDX-License-Identifier: Apache-2.0
"""What Serdab ships for testing: file systems in memory, broken hosts, broken images."""
