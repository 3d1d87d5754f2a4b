# SPDX-License-Identifier: Apache-2.0
"""``make demo``: seal this machine's own programs, boot them, and then attack the storage.

Every claim it prints is checked, and the first that fails ends it with status 1. It needs no
network and leaves nothing behind; ``--keep`` keeps its directory. Root and ordinary users see the
same.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from demos.hello.stage import Failure, Stage

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
SECRET: Final = "the slit is at eye level"
MEASUREMENTS: Final = ("mrenclave", "mrsigner", "conf-mac", "init-mac", "root-mac")
_IMAGE_ROOT_POINTER: Final = 64  # inside the hash of the root page, in the header of an image


def find_python() -> dict[str, str]:
    """Return where the machine's Python lies, as the variables of hello.yaml.

    The system's own where it has the modules that the demo imports; else the one running this.
    """
    probe = (
        "import json, ssl, sqlite3, hashlib, os, sys, sysconfig\n"
        "real = os.path.realpath(sys._base_executable)\n"
        "print(os.path.dirname(real), os.path.basename(real), sep='\\n')\n"
        "print(sysconfig.get_path('stdlib'))"
    )
    for candidate in ("/usr/bin/python3", sys.executable):
        if os.path.exists(candidate):
            found = subprocess.run(
                [candidate, "-I", "-c", probe], capture_output=True, text=True, check=False
            )
            if found.returncode == 0:
                folder, name, stdlib = found.stdout.splitlines()
                return {
                    "HELLO_PYTHON_DIR": folder,
                    "HELLO_PYTHON_NAME": name,
                    "HELLO_STDLIB_DIR": os.path.dirname(stdlib),
                }
    raise Failure("no Python 3 with ssl and sqlite3 on this machine")


def build_instance(stage: Stage) -> None:
    stage.title("An instance, filled through a BOM")
    stage.serdab("new", "hello")
    stage.enter("hello")
    stage.serdab("copy-bom", "-f", "../hello.yaml", "--root", "image")
    files = [path for path in Path("image").rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    stage.claim("bash is in the tree", holds=Path("image/bin/bash").is_file())
    libraries = sorted({path.name for path in files if ".so" in path.name and "lib" in path.name})
    stage.claim(
        "and the C library it needs", holds=any(name.startswith("libc.so") for name in libraries)
    )
    stage.note(f"{len(files):,} files, {size / 1e6:,.0f} MB")

    stage.title("Sealed under a key that stays outside")
    stage.serdab("gen-image-key", "../hello.key")
    stage.claim("the key file is 0600", holds=os.stat("../hello.key").st_mode & 0o777 == 0o600)
    told = stage.serdab("build", "--image-key", "../hello.key")
    values = {name: stage.serdab("print", name, quiet=True).strip() for name in MEASUREMENTS}
    for name, value in values.items():
        stage.require(f"build and `print {name}` agree", holds=value in told)
        stage.require(
            f"{name} is 64 hex digits", holds=re.fullmatch(r"[0-9a-f]{64}", value) is not None
        )
    stage.claim("five measurements, all different", holds=len(set(values.values())) == len(values))
    # What lies on the untrusted storage from here on is what a deployment would copy there.
    shutil.move("image", "../image")
    shutil.move("initfs", "../initfs")
    stage.note("the source trees stay home: only the sealed instance goes to the storage")


def grep(word: str, folder: str) -> list[str]:
    """Return the files below a directory that hold a text, by grep(1)."""
    done = subprocess.run(
        ["grep", "-rlaF", "--", word, folder], capture_output=True, text=True, check=False
    )
    if done.returncode > 1 or done.stderr:
        raise Failure(f"grep could not read everything: {done.stderr}")
    return done.stdout.splitlines()


def boot(stage: Stage) -> None:
    stage.title("Booted: signed → config → init FS → init → root FS → program")
    out = stage.run_inside("/bin/bash", "/opt/hello/hello.sh")
    for word in ("1000 999 998", "3 lines, mode 640", "add up to 10", "an applet", '"boots": 1'):
        stage.require(f"the script printed {word!r}", holds=word in out)
    stage.claim("pipes, files, processes, ssl, sqlite3: as anywhere else", holds=True)

    stage.title("What it writes survives, and only inside")
    stage.run_inside("/bin/bash", "-c", f"echo '{SECRET}' > /root/diary.txt")
    out = stage.run_inside("/bin/bash", "-c", "cat /root/diary.txt")
    stage.claim("the next boot reads it", holds=out.strip() == SECRET)
    for word in (SECRET, "diary.txt", "pipes, files, processes and Python"):
        stage.command(f"grep -rlaF {word!r} .")
        found = grep(word, ".")
        stage.require(f"grep finds nothing, yet: {found}", holds=not found)
    control = grep("pipes, files, processes and Python", "../image")
    stage.require("the same grep finds the text in the source tree", holds=bool(control))
    stage.claim("the storage shows neither content nor names", holds=True)


def refuse(stage: Stage, path: Path, offset: int, *, at: str, what: str) -> None:
    """Flip one byte, expect a refusal that names its stage, and put the byte back."""
    from serdab.testing.breaker import flip_byte

    flip_byte(path, offset)
    stage.command(f"flip a bit at byte {offset} of {path}   # {what}")
    try:
        error = stage.run_refused("/bin/true", expect=125)
    finally:
        flip_byte(path, offset)
    stage.claim(f"refused at stage {at!r}", holds=f"serdab: error: {at}: " in error)
    stage.require("the refusal holds a hint", holds="hint:" in error)


def attack(stage: Stage) -> None:
    stage.title("Attacked: the config, the init FS, the root FS")
    config = Path("build/.Occlum_sys.json.protected")
    place = config.read_bytes().index(b'"/bin"') + 2
    refuse(stage, config, place, at="config", what="other entry points")
    for folder, at in (("initfs", "initfs"), ("mount", "rootfs")):
        image = Path("build") / folder / "__ROOT/image.sefs"
        refuse(stage, image, _IMAGE_ROOT_POINTER, at=at, what=f"the root of the {folder} image")
    wrong = Path("../wrong.key")
    stage.serdab("gen-image-key", wrong, quiet=True)
    error = stage.run_refused("/bin/true", key=wrong, expect=125)
    stage.claim("and another key opens nothing", holds="wrong image key" in error)


def corrupt_program(stage: Stage) -> None:
    from serdab.keys import Key
    from serdab.sefs.image import open_image
    from serdab.testing.breaker import flip_byte, locate_chunk

    stage.title("One byte of a program")
    root = Path("build/mount/__ROOT")
    key = Key.parse(Path("../hello.key").read_text())
    image = open_image(root, key=key, expected_mac=None)
    try:
        chunk = locate_chunk(image, "/bin/busybox", 600_000)
    finally:
        image.close()
    offset = chunk.offset + chunk.length // 2
    flip_byte(root / "image.sefs", offset)
    stage.command(f"flip a bit at byte {offset} of {root}/image.sefs   # in the middle of busybox")
    # 2>&1: a program writes its message in pieces, the operator's line may come in between.
    script = "sha256sum /bin/busybox 2>&1; echo still here"
    out, error, status = stage.run_any("/bin/bash", "-c", script)
    stage.claim(
        "the program reads EIO, no wrong data", holds="/bin/busybox: Input/output error" in out
    )
    stage.claim(
        "the operator reads which layer, offset and inode", holds=f"inode {chunk.ino}" in error
    )
    stage.claim("everything else still works", holds="still here" in out and status == 0)
    out, error, status = stage.any_serdab("fsck", "--image-key", "../hello.key")
    stage.claim("fsck names the file", holds=status == 3 and "bin/busybox" in out + error)
    flip_byte(root / "image.sefs", offset)
    out = stage.run_inside("/bin/bash", "-c", "sha256sum /bin/busybox | cut -c1-16")
    stage.claim(
        "the byte put back, it reads again", holds=re.fullmatch(r"[0-9a-f]{16}\n", out) is not None
    )


def check_clean(base: Path) -> None:
    """Fail if a mount of ours is left on the host."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        left = [line for line in table if str(base) in line]
    if left:
        raise Failure(f"mounts left behind: {left}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    options = parser.parse_args(argv)
    started_s = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="serdab-demo-"))
    stage = Stage(base, {**find_python(), "HELLO_DIR": str(base)})
    try:
        for name in ("hello.yaml", "hello.sh"):
            shutil.copy(HERE / name, base)
        stage.banner(f"Serdab, as {pwd.getpwuid(os.getuid()).pw_name}, Linux {os.uname().release}")
        build_instance(stage)
        boot(stage)
        attack(stage)
        corrupt_program(stage)
        check_clean(base)
        stage.banner(f"All of it held, in {time.monotonic() - started_s:.0f} s.")
    except Failure as failure:
        print(f"\ndemo: failed: {failure}", file=sys.stderr)
        return 1
    finally:
        os.chdir("/")
        if options.keep:
            print(f"kept: {base}")
        else:
            shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
