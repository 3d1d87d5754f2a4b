# SPDX-License-Identifier: Apache-2.0
"""Packs a built instance with the code that boots it into one tarball, and signs the tarball.

What travels is named, never collected: the descriptor, the protected configuration and the two
sealed images of ``build/``; this Serdab; the libraries it needs; a launcher; a manifest. So never
``run/``, state, keys, previous images, ``Occlum.json`` or the source trees, whatever lies there.

Above: ``cli``. Below: ``carried`` (code), ``launcher``, ``packageoutput``, ``check``,
``trust.chain``.

On-disk format:
    ``NAME/serdab`` (launcher), ``NAME/package.json`` (what it is and needs),
    ``NAME/code/<digest>/`` (Serdab and its libraries; the digest is over all of them, so that byte
    code that was cached for one set of libraries is never taken for another),
    ``NAME/instance/build/``. Beside the tarball ``NAME.tar.gz.sig``: the raw RSA signature
    over its bytes, PKCS#1 v1.5 with SHA-256.

Security:
    1. The same checks as at boot come first, by the same code, and the files of both images are
       read to the last byte: what does not boot is not packaged. Of an encrypted image without its
       key the header is checked, which the root MAC is over.
    2. The package is signed by the key that signed the build. The signature is what tells a changed
       package: code that was changed can claim anything about itself.
    3. A key that lies in clear in the init FS would be published with it: only when asked for.
"""

from __future__ import annotations

import _imp
import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from serdab.config.boot import ENCRYPTED, BootConfig
from serdab.errors import SignerMismatch, UsageError, VerificationError
from serdab.instance import carried
from serdab.instance.check import check_image_at, check_image_header
from serdab.instance.epoch import source_date_epoch
from serdab.instance.launcher import Runtime, launcher
from serdab.instance.layout import (
    DESCRIPTOR,
    IMAGE,
    INITFS,
    PACKAGE_CODE,
    PACKAGE_INSTANCE,
    PACKAGE_LAUNCHER,
    PACKAGE_MANIFEST,
    PROTECTED_CONFIG,
    Instance,
)
from serdab.instance.locks import lock_build
from serdab.instance.packageoutput import Written, require_place, write_package
from serdab.instance.tarball import Member
from serdab.keys import Key
from serdab.linux.outside import Walk
from serdab.sefs.imageformat import IMAGE_NAME
from serdab.structs import frozen
from serdab.trust import platform
from serdab.trust.chain import BootChain
from serdab.trust.descriptor import Descriptor, parse_and_verify
from serdab.trust.measurement import code_digest
from serdab.trust.signing import Signer

FORMAT: Final = 1


@frozen
class PackageRequest:
    """What to package as, and what is allowed to travel.

    ``output`` is the path of the tarball. ``debug`` admits debuggable and simulation instances,
    ``builtin_key`` one whose image key lies in its init FS. ``image_key`` serves to verify.
    """

    output: str
    signer: Signer
    debug: bool = False
    builtin_key: bool = False
    image_key: Key | None = None
    public_key: str | None = None


@frozen
class Packaged:
    """What was made."""

    path: str
    written: Written
    runs_on: str
    descriptor: Descriptor


Say = Callable[[str], None]


def package(instance: Instance, request: PackageRequest, *, say: Say) -> Packaged:
    """Write the package of a built instance and its signature; both or neither.

    Raises:
        UsageError: something is at the output's place, or something may not travel unasked.
        VerificationError: ``build/`` would not boot, or another key signed it.
    """
    directory, name = Walk().parent(request.output)
    with directory, lock_build(instance), ExitStack() as stack:
        require_place(directory, name)
        raw = {name: instance.read(name) for name in (DESCRIPTOR, PROTECTED_CONFIG)}
        descriptor, config = _verify(raw, request)
        _require_asked_for(descriptor, config, request)
        _verify_images(instance, config, request, say)
        for path in config.host_directories:
            if os.path.isabs(path):
                say(f"the configuration shows the host directory {path}: it does not travel")
        libraries = carried.libraries()
        code = carried.own_code() + carried.own_licence()
        code += [file for library in libraries for file in library.files]
        folder = f"{PACKAGE_CODE}/{_digest(code)}"
        runtime = _runtime(libraries)
        members = [
            Member.of(f"{folder}/{file.path}", file.content, executable=file.executable)
            for file in code
        ]
        entry = f"{folder}/serdab/cli/packaged.py"
        door = f"{folder}/serdab/init/bin/{os.uname().machine}/door"
        manifest = _manifest(request, descriptor, config, runtime, libraries)
        members += [
            Member.of(PACKAGE_LAUNCHER, launcher(runtime, entry, door), executable=True),
            Member.of(PACKAGE_MANIFEST, manifest),
        ]
        members += [Member.of(f"{PACKAGE_INSTANCE}/{name}", raw[name]) for name in raw]
        for image in (IMAGE, INITFS):
            members.append(_image_member(instance, f"{image}/{IMAGE_NAME}", stack))
        # Whoever changed our code while we read it changed what the descriptor names.
        _require_same_code(descriptor)
        if request.public_key is not None:
            _write_public_key(request.public_key, request.signer)
        written = write_package(directory, name, request.signer, members, source_date_epoch() or 0)
        return Packaged(request.output, written, _words(runtime), descriptor)


def _write_public_key(path: str, signer: Signer) -> None:
    """Write the signer's public key, unless just that is there already."""
    content = signer.public.pem()
    try:
        directory, name = Walk().parent(path)
        with directory:
            if directory.create_whole(name, content, mode=0o644):
                return
            found = directory.read(name, 1 << 16)
    except OSError as exc:
        raise UsageError(
            "the public key cannot be written",
            subject=path,
            expected="a path in a directory that can be written",
            found=os.strerror(exc.errno or 0),
            hint="make room or the directory there, or name a path elsewhere",
        ) from exc
    if found != content:
        raise UsageError(
            "something is there already",
            subject=path,
            expected="no file, or the same public key",
            found="something else",
            hint="remove it first, or name another",
        )


def _verify(raw: dict[str, bytes], request: PackageRequest) -> tuple[Descriptor, BootConfig]:
    """Check descriptor and configuration as a boot does."""
    signer = request.signer.public.mrsigner()
    signed = parse_and_verify(raw[DESCRIPTOR])
    if not signed.signer.mrsigner().matches(signer):
        raise SignerMismatch(
            "the build is signed by another key than the package would be",
            subject=request.signer.origin,
            expected=f"mrsigner {signed.signer.mrsigner()}",
            found=f"mrsigner {signer}",
            hint="--sign-key names the key that signed the build, or build again with this one",
        )
    chain = BootChain()
    descriptor = chain.accept_descriptor(
        raw[DESCRIPTOR],
        code_digest=code_digest(),
        expected_signer=signer,
        platform=platform.current().name,
    )
    return descriptor, chain.accept_config(raw[PROTECTED_CONFIG])


def _require_same_code(descriptor: Descriptor) -> None:
    if not descriptor.code_digest.matches(code_digest()):
        raise VerificationError(
            "Serdab was changed while it was packaged",
            subject="code of Serdab",
            hint="`serdab build` renews the descriptor; then package again",
        )


def _require_asked_for(descriptor: Descriptor, config: BootConfig, request: PackageRequest) -> None:
    reasons = []
    if descriptor.debuggable:
        reasons.append("debuggable (metadata.debuggable)")
    if descriptor.platform == platform.SIMULATION:
        reasons.append("on the simulation platform")
    if reasons and not request.debug:
        raise UsageError(
            "this instance is not one for production",
            subject="the build",
            expected="a production build on a platform with hardware",
            found="one that is " + " and ".join(reasons),
            hint="--debug packages it all the same",
        )
    if config.builtin_image_key and not request.builtin_key:
        raise UsageError(
            "the image key lies in clear in the init FS, so the package would publish it",
            subject="the build",
            expected="a build without --buildin-image-key",
            found="one with it",
            hint="--buildin-image-key packages it all the same",
        )


def _verify_images(
    instance: Instance, config: BootConfig, request: PackageRequest, say: Say
) -> None:
    checks: list[tuple[str, Key | None, bytes]] = [(INITFS, None, config.init_mac)]
    if config.image_type != ENCRYPTED:
        checks.append((IMAGE, None, config.root_mac))
    elif request.image_key is not None:
        checks.append((IMAGE, request.image_key, config.root_mac))
    else:
        with instance.root.directory(IMAGE) as image:
            check_image_header(image, config.root_mac)
        say(
            "the image is encrypted, so only its header was verified: "
            "--image-key FILE verifies every byte"
        )
    for relative, key, mac in checks:
        with instance.root.directory(relative) as image:
            damaged = check_image_at(image, key, mac).report.damaged
        for path, problem in sorted(damaged.items()):
            raise VerificationError(
                f"{path} is damaged: {problem}",
                subject=instance.at(relative),
                hint="`serdab fsck` names all that is; `serdab build -f` seals anew",
            )


def _digest(code: list[carried.CarriedFile]) -> str:
    total = hashlib.sha256(b"serdab package code 1\n")
    for file in sorted(code, key=lambda file: file.path):
        total.update(os.fsencode(file.path) + b"\0" + hashlib.sha256(file.content).digest())
    return total.hexdigest()[:16]


def _runtime(libraries: list[carried.Library]) -> Runtime:
    high, low = max(library.glibc for library in libraries)
    return Runtime(
        version=f"{sys.version_info.major}.{sys.version_info.minor}",
        suffix=_imp.extension_suffixes()[0],
        glibc=f"{high}.{low}",
    )


def _words(runtime: Runtime) -> str:
    return f"CPython {runtime.version} on {os.uname().machine} with glibc {runtime.glibc} or newer"


def _manifest(
    request: PackageRequest,
    descriptor: Descriptor,
    config: BootConfig,
    runtime: Runtime,
    libraries: list[carried.Library],
) -> bytes:
    value = {
        "format": FORMAT,
        "serdab": descriptor.serdab_version,
        "python": runtime.version,
        "machine": os.uname().machine,
        "glibc": runtime.glibc,
        "extension_suffix": runtime.suffix,
        "libraries": {library.name: library.version for library in libraries},
        "mrenclave": str(descriptor.mrenclave()),
        "mrsigner": str(request.signer.public.mrsigner()),
        "image_type": config.image_type,
        "builtin_image_key": config.builtin_image_key,
        "debuggable": descriptor.debuggable,
        "platform": descriptor.platform,
    }
    return json.dumps(value, sort_keys=True, indent=2).encode("ascii") + b"\n"


def _image_member(instance: Instance, relative: str, stack: ExitStack) -> Member:
    file = stack.enter_context(os.fdopen(instance.root.open_file(relative), "rb"))
    size = os.fstat(file.fileno()).st_size
    return Member(f"{PACKAGE_INSTANCE}/{relative}", file, size)
