# SPDX-License-Identifier: Apache-2.0
"""A caller of Serdab who watches whether anything inside reaches anybody outside.

It is a process of its own, the leader of its process group: ``python -c SCENE COMMAND...``. COMMAND
runs ``reach.c``, in this group. Signals are held back here, so whoever sends one is seen. The last
line of the output is "SEEN " and a JSON list: (act, its result, who changed, in what).
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

PATIENCE_S = 50
ACTS = [
    "kill 0", "kill -1", "stop 0", "kill group", "kill", "tkill", "tgkill", "sigqueue",
    "sigqueue thread", "pidfd", "pidfd of the parent", "pidfd of the group", "owner",
    "owner group", "owner own group", "timer", "nice process", "nice own group", "nice group",
    "nice own user", "nice inner root", "ionice process", "ionice own group", "ionice group",
    "ionice own user", "scheduler", "limit", "join group", "terminal to group",
    "autogroup of pid 1", "autogroup",
]  # fmt: skip
libc = ctypes.CDLL(None)


def outside() -> dict[int, str]:
    """Return this process and all below it that are not inside, with their names."""
    found = {}
    for pid in family():
        try:
            with open(f"/proc/{pid}/status") as file:
                fields = dict(line.split(":", 1) for line in file if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if len(fields["NSpid"].split()) == 1:
            found[pid] = fields["Name"].strip()
    return found


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def family() -> set[int]:
    """Return this process and all below it."""
    parents = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            parents[int(name)] = parent(int(name))
        except OSError:
            continue
    found = {os.getpid(), *ROOTS}
    while more := {pid for pid, above in parents.items() if above in found} - found:
        found |= more
    return found


def state(pid: int) -> dict[str, object]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    with open(f"/proc/{pid}/status") as file:
        pending = {line.split(":")[0]: line.split()[1] for line in file if "Pnd" in line}
    with open(f"/proc/{pid}/limits") as file:
        limits = next(line for line in file if line.startswith("Max open files"))
    try:
        with open(f"/proc/{pid}/autogroup") as file:
            autogroup = file.read().split()[-1]
    except OSError:
        autogroup = ""
    # SIGCHLD is ours, and what is pending in theirs is theirs to read.
    held = int(pending["ShdPnd"], 16) & ~(1 << signal.SIGCHLD - 1)
    return {
        "stopped": fields[0] == b"T",
        "nice": int(fields[16]),
        "policy": int(fields[38]),
        "io priority": libc.syscall(252, 1, pid),
        "signals": held if pid in (os.getpid(), CANARY.pid) else 0,
        "limit": limits.split()[3],
        "autogroup": autogroup,
    }


def settled() -> dict[int, str]:
    """Return those outside once they are the ones who stay.

    The fs server of the init FS ends after the program inside has started, some time or other.
    Those of the root FS and of /host stay.
    """
    deadline = time.monotonic() + PATIENCE_S
    while list((found := outside()).values()).count("serdab-fs") != 2:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def everybody(pids: dict[int, str]) -> dict[int, dict[str, object]]:
    return {pid: state(pid) for pid in pids}


ROOTS = [int(word) for word in sys.argv[1].split(",") if word]
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
CANARY = subprocess.Popen(["sleep", "1000"])
held = signal.pthread_sigmask(signal.SIG_SETMASK, set())
run = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
signal.pthread_sigmask(signal.SIG_SETMASK, held)


def watch() -> list[list[str]]:
    """Let the program act, and return what happened."""
    told, heard = run.stdin, run.stdout
    assert told is not None
    assert heard is not None
    seen: list[list[str]] = []

    def do(act: str, pid: int) -> str:
        told.write(f"{act} {pid}\n")
        told.flush()
        return heard.readline().strip()

    assert do("no act", 0) == "EDOM", "it does not begin"
    pids = settled()
    before = everybody(pids)
    assert len(pids) >= 5, pids
    for act in ACTS:
        result = do(act, os.getpid())
        after = everybody(pids)
        for pid, was in before.items():
            for what, value in was.items():
                if after[pid][what] != value:
                    change = f"{what}: {value} -> {after[pid][what]}"
                    seen.append([act, result, f"{pids[pid]} {pid}", change])
        seen.append([act, result, "", ""])
        before = after
    assert do("kill -9 0", 0) == ""
    status = run.wait()
    if CANARY.poll() is not None or state(CANARY.pid)["stopped"]:
        seen.append(["kill -9 0", "", "canary", "killed or stopped"])
    seen.append(["end", str(status), "", str(state(os.getpid())["autogroup"])])
    return seen


try:
    print("SEEN", json.dumps(watch()), flush=True)
finally:
    CANARY.kill()
    run.kill()
