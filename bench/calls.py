# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.calls``: what intercepted system calls cost, beside a bare listener in C.

It prints medians; calls.c says what each is. It needs gcc.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROUNDS = "2000"
SERDAB = [sys.executable, "-m", "serdab"]


def main() -> int:
    base = Path(tempfile.mkdtemp(prefix="serdab-calls-"))
    runtime = base / "run"
    runtime.mkdir(mode=0o700)
    env = {**os.environ, "HOME": str(base), "XDG_RUNTIME_DIR": str(runtime)}
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        env.pop(name, None)
    try:
        program = base / "calls"
        flags = ["-D_GNU_SOURCE", "-static", "-O2", "-Wall"]
        subprocess.run(["gcc", *flags, "-o", str(program), str(HERE / "calls.c")], check=True)
        inst = base / "inst"
        subprocess.run([*SERDAB, "-q", "new", str(inst)], env=env, check=True)
        shutil.copy(program, inst / "image/bin/calls")
        for path in (inst / "image/mnt", inst / "l", inst / "u"):
            path.mkdir()
        subprocess.run([*SERDAB, "-q", "-C", str(inst), "build"], env=env, check=True)
        print("outside:", flush=True)
        subprocess.run([str(program), "bare", ROUNDS], check=True)
        print("inside:", flush=True)
        inside = [*SERDAB, "-q", "-C", str(inst), "run", "/bin/calls", ROUNDS]
        # Every refusal is a line for the operator: thousands of them here.
        subprocess.run(inside, env=env, check=True, stderr=subprocess.DEVNULL)
    finally:
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
