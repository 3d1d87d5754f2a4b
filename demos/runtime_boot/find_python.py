# SPDX-License-Identifier: Apache-2.0
"""Prints where this machine's Python lies, as the variables of init_python.yaml, for a shell."""

import os
import shlex
import sys
import sysconfig

REAL = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
FOUND = {
    "DEMO_PYTHON": os.path.basename(REAL),
    "DEMO_PYTHON_BIN": os.path.dirname(REAL),
    "DEMO_PYTHON_LIB": sysconfig.get_path("stdlib"),
}
for name, value in FOUND.items():
    print(f"export {name}={shlex.quote(value)}")
