# SPDX-License-Identifier: Apache-2.0
"""A program that embeds an instance: boots it once, runs programs in it, takes it down.

``python -m demos.embed.embed`` makes an instance of this machine's busybox in a directory of its
own, does with it what ``serdab.pal`` offers, and checks each step; the first that does not hold
ends it with status 1. docs/pal.md explains the calls.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

from serdab import pal
from serdab.errors import Error
from serdab.keys import Key

APPLETS: Final = ("sh", "cat", "echo", "sleep", "sort", "seq")


def claim(text: str, *, holds: bool) -> None:
    """Print what was shown; end with status 1 if it was not."""
    print(f"   {'ok' if holds else 'NO'}  {text}", flush=True)
    if not holds:
        sys.exit(1)


def make_instance(base: Path) -> tuple[Path, Path]:
    """Return an instance with an encrypted image, and the file of its key."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("this demonstration needs busybox, linked statically")
    instance, key = base / "instance", base / "image.key"

    def serdab(*words: str | Path) -> None:
        command = [sys.executable, "-P", "-m", "serdab", "-q", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    serdab("new", instance)
    shutil.copy(busybox, instance / "image/bin/busybox")
    (instance / "image/bin/busybox").chmod(0o755)
    for name in APPLETS:
        (instance / "image/bin" / name).symlink_to("busybox")
    serdab("gen-image-key", key)
    serdab("-C", instance, "build", "--image-key", key)
    return instance, key


def output_of(instance: pal.Pal, *argv: str, env: dict[str, str] | None = None) -> str:
    """Return what a program writes, and wait for its end."""
    reader, writer = os.pipe()
    process = instance.create_process(argv, env=env, stdin=-1, stdout=writer)
    os.close(writer)  # the program has a copy; ours would keep the pipe open
    with open(reader, encoding="utf-8") as stream:
        text = stream.read()
    process.wait()
    return text


def run_two_in_parallel(instance: pal.Pal) -> None:
    """Join two programs by a pipe, as a shell does with ``seq 5 | sort -r``."""
    between = os.pipe()
    result = os.pipe()
    producer = instance.create_process(["/bin/seq", "5"], stdin=-1, stdout=between[1])
    consumer = instance.create_process(["/bin/sort", "-r"], stdin=between[0], stdout=result[1])
    for fd in (*between, result[1]):
        os.close(fd)
    with open(result[0], encoding="utf-8") as stream:
        lines = stream.read().split()
    claim("a pipe joins two programs", holds=lines == ["5", "4", "3", "2", "1"])
    claim("both ended well", holds=[producer.wait().code, consumer.wait().code] == [0, 0])


def kill_one(instance: pal.Pal) -> None:
    """TERM is a request that a program may answer; KILL is none."""
    reader, writer = os.pipe()
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    polite = instance.create_process(["/bin/sh", "-c", script], stdin=-1, stdout=writer)
    os.read(reader, 16)
    polite.kill(signal.SIGTERM)
    claim("TERM was answered with status 7", holds=polite.wait().code == 7)
    other = instance.create_process(["/bin/sleep", "1000"], stdin=-1)
    other.kill()
    claim("KILL was not answered", holds=other.wait() == pal.ExitStatus(signal=signal.SIGKILL))
    claim("a shell would say 137", holds=other.wait().shell == 137)
    os.close(reader)
    os.close(writer)


def kill_all(instance: pal.Pal) -> None:
    """One call reaches every process inside; threads wait for one each."""
    sleepers = [instance.create_process(["/bin/sleep", "1000"], stdin=-1) for _ in range(3)]
    ends: list[pal.ExitStatus] = []
    threads = [threading.Thread(target=lambda p=p: ends.append(p.wait())) for p in sleepers]
    for thread in threads:
        thread.start()
    instance.kill(signal_number=signal.SIGTERM)
    for thread in threads:
        thread.join()
    claim("TERM to all ended all", holds=[end.signal for end in ends] == [signal.SIGTERM] * 3)


def main() -> int:
    """Show it all."""
    base = Path(tempfile.mkdtemp(prefix="serdab-embed-"))
    for name in ("STATE_HOME", "CACHE_HOME", "CONFIG_HOME", "RUNTIME_DIR"):
        os.environ[f"XDG_{name}"] = str(base / name.lower())
        (base / name.lower()).mkdir(mode=0o700)
    try:
        path, key_file = make_instance(base)
        print(f"Serdab {pal.get_version()}", flush=True)
        key = Key.parse(key_file.read_text())
        lines: list[str] = []

        instance = pal.init(
            path,
            image_key=key,
            private=[key_file],
            log=lambda level, line: lines.append(f"{level}: {line}"),
        )
        print("booted; what was measured on the way:", flush=True)
        for item in instance.measured:
            print(f"   {item.stage:8}{item.subject:11}{item.digest[:16]}...", flush=True)

        status = instance.exec(["/bin/sh", "-c", "echo kept > /root/note; exit 3"], stdin=-1)
        claim("the exit status is the program's", holds=status.code == 3)
        text = output_of(
            instance,
            *("/bin/sh", "-c", "echo $EXAMPLE$SECRET; cat /root/note"),
            env={"EXAMPLE": "passed ", "SECRET": "not"},
        )
        claim(
            "the environment is filtered as the configuration says",
            holds=text == "passed\nkept\n",
        )
        run_two_in_parallel(instance)
        kill_one(instance)
        kill_all(instance)
        try:
            instance.exec(["/bin/nosuch"])
        except Error as exc:
            claim(f"refused: {exc.message}", holds=(exc.kind, exc.exit_code) == ("not-found", 127))

        last = instance.create_process(["/bin/sleep", "1000"], stdin=-1)
        instance.destroy()
        claim("destroy ended the last program", holds=last.wait().signal == signal.SIGTERM)
        try:
            instance.exec(["/bin/echo"])
        except Error as exc:
            claim(f"refused: {exc.message}", holds=exc.stage == "down")

        with pal.init(path, image_key=key, log=lambda level, line: None) as again:
            claim(
                "a second boot finds what the first one wrote",
                holds=output_of(again, "/bin/cat", "/root/note") == "kept\n",
            )
        claim("nobody complained", holds=not [line for line in lines if line.startswith("error")])
        print("All of it held.", flush=True)
        return 0
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    sys.exit(main())
