# SPDX-License-Identifier: Apache-2.0
"""The boot of one instance: what is done in each state of the chain, and MountRootFS.

Above: ``kernel``. Below: ``trust.chain`` (the decisions), ``sandbox``, ``fsclient``. The order is
the chain's; here is the work between two of its decisions. Namespaces are made and fs servers
import their code while descriptor and configuration are verified.

MountRootFS builds everything before it switches: the new tree is complete, or the old one stays
and the caller gets an errno. It works once, and only while init runs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from serdab.config.boot import BootConfig, MountEntry
from serdab.errors import (
    Error,
    LayerMismatch,
    MeasurementMismatch,
    NotAllowedError,
    NotFoundError,
    WrongKeyError,
)
from serdab.keys import Key
from serdab.libos import environment, hostdirs, hostfiles, keysource, mountkeys
from serdab.libos.fsclient import FsServer
from serdab.libos.ground import Ground, Roots
from serdab.libos.intake import CallError
from serdab.libos.launcher import SpawnRequest
from serdab.libos.limits import Wanted
from serdab.libos.loop import Loop, Task
from serdab.libos.mountrules import Rules
from serdab.libos.notify import Caller
from serdab.libos.orders import HOST, TRANSIENT, UNION, Orders
from serdab.libos.pinplace import require_outside
from serdab.libos.request import BootRequest, parse_mac
from serdab.libos.rootconfig import Request, RootConfig, read_request
from serdab.libos.sandbox import Sandbox
from serdab.libos.shares import Shares
from serdab.libos.tree import HostDirectory, Memory, TextFile, Tree
from serdab.libos.volumekey import VolumeKey, check_key_fits, volume_key
from serdab.linux.process import sealed_file
from serdab.structs import frozen, replace
from serdab.trust import platform
from serdab.trust.appraisal import Untrusted, appraise, remember_signer
from serdab.trust.chain import BootChain, State

INIT: Final = "/bin/init"
IMAGE_KEY_FILE: Final = "/etc/image_key"
_INIT_FUSE: Final = 0
_ROOT_FUSE: Final = 1
_FIRST_HOST_FUSE: Final = 2
#: For root and init FS, one host directory that init names, the nursery, and some on their way out.
_OWN_SERVERS: Final = 16


@frozen
class Parts:
    """What a boot works with. ``new_server(name)`` starts an fs server; ``group_servers()``
    moves those that there are, and will be, to the control group that was made."""

    loop: Loop
    sandbox: Sandbox
    init_server: FsServer
    root_server: FsServer
    new_server: Callable[[str], FsServer]
    group_servers: Callable[[], None]
    log: Callable[[str, str], None]


@frozen
class HostMount:
    """A host directory of the application's tree, decided and ready to be mounted."""

    target: str
    shown: hostdirs.Shown
    server: FsServer
    fuse: int
    opened: Task[bytes]


class Boot:
    """One boot; afterwards it knows what programs may be started and with what environment.

    ``ground`` is open until the process ends: programs mount as long as it lives.
    """

    def __init__(
        self, parts: Parts, request: BootRequest, stdio: tuple[int, int, int], ground: Ground
    ) -> None:
        self._parts = parts
        self._ground = ground
        #: The real path of what was opened, by which records know the instance.
        self._instance = ground.real(".")
        self._roots: tuple[Roots, Roots] | None = None
        self._request = request
        self._stdio = stdio
        self.chain = BootChain()
        self._platform = platform.current()
        self._trusted: tuple[bytes, ...] = ()
        self.entry_points: tuple[str, ...] = environment.INIT_ENTRY_POINTS
        self.servers: dict[int, FsServer] = {}
        self._host_mounts: tuple[HostMount, ...] = ()
        self._files: tuple[list[hostfiles.HostFile], list[str]] = ([], [])
        self._refusal: Error | None = None
        self._mounting = False
        self._expect_upper = b""
        self._mount_rules: Rules | None = None
        self._config: BootConfig | None = None

    def environment_for(self, caller: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return the environment of a program started from outside."""
        names = [os.fsencode(name) for name in self.chain.config.env_untrusted]
        return environment.combine(self._trusted, names, caller)

    def may_log(self, level: str) -> bool:
        """Return whether the measured configuration lets a line of this level out."""
        config = self._config  # None: nothing is decrypted yet
        if config is None or level in ("error", "notice"):
            return True
        return config.debuggable and not config.disable_log

    def shares(self) -> Shares:
        """Return how the measured memory limit is divided."""
        config = self.chain.config
        ramfs = sum(map(_is_memory, config.mounts))
        return Shares(config.limits.memory_bytes, ramfs)

    def mount_rules(self) -> Rules:
        """Return what programs may mount; only while some run.

        Raises:
            Error: the platform has no automatic key.
        """
        host_roots, layer_roots = self._known_roots()
        host_roots.look()
        layer_roots.look()
        if self._mount_rules is None:
            self._mount_rules = mountkeys.make_rules(
                self.chain,
                self._platform,
                ground=self._ground,
                host_roots=host_roots,
                layer_roots=layer_roots,
                private=self._private(),
                one_owner=self._parts.sandbox.ids.is_single,
                accept_rollback=self._request.freshness.accept_rollback,
                log=self._parts.log,
            )
        return self._mount_rules

    async def run(self) -> None:
        """Boot up to the point where the application may start.

        Raises:
            Error: refused; the chain says at which stage.
        """
        config = self._verify()
        await self._enter(config)
        await self._mount_init(config)
        await self._run_init(config)

    def _verify(self) -> BootConfig:
        request = self._request
        config = appraise(
            self.chain,
            Untrusted(self._instance, request.descriptor, request.config),
            expect_signer=request.expect_signer,
            platform=self._platform.name,
        )
        # Only now: a signer whose signature was not good is not remembered.
        if remember_signer(self.chain, self._instance, expect_signer=request.expect_signer):
            line = f"first use: expected from now on to be signed by mrsigner {self.chain.signer}"
            self._parts.log("notice", line)
        self._config = config
        if config.builtin_image_key:
            line = "the image key is built in: whoever can read build/ can read the image"
            self._parts.log("notice", line)
        self._trusted = tuple(os.fsencode(item) for item in config.env_default)
        self._check_expected_root(config)
        return config

    def _check_expected_root(self, config: BootConfig) -> None:
        # Checked here, although it is used later: a bad value must not cost a whole boot.
        self._expect_upper = parse_mac(self._request.freshness.expect_upper, "--expect-upper")
        expected = parse_mac(self._request.expect_root, "--expect-root")
        if not config.root_mac.startswith(expected):
            raise MeasurementMismatch(
                "the root FS is not the expected one",
                stage="config",
                subject="root FS",
                expected=f"root-mac {expected.hex()}",
                found=f"root-mac {config.root_mac.hex()}",
                hint="`serdab print root-mac` shows what build/ holds",
            )

    async def _enter(self, config: BootConfig) -> None:
        self._host_mounts = self._prepare_host_mounts(config)
        fuse_count = _FIRST_HOST_FUSE + 1  # one for a host directory that init may name
        fuse_count += len(self._host_mounts)
        limits, shares = config.limits, self.shares()
        mounts = shares.mounts(config.runtime_mounts.max_mounts)
        layer_bytes = shares.layer_bytes(config.upper.max_bytes) if config.upper.temporary else 0
        await self._parts.sandbox.enter()
        lines = await self._parts.sandbox.set_up(
            Wanted(
                limits.max_processes,
                limits.memory_bytes,
                limits.stack_bytes,
                may_dump_core=config.debuggable,
                servers_bytes=shares.servers_bytes(mounts, layer_bytes),
                servers=2 * mounts + len(self._host_mounts) + _OWN_SERVERS,
                shm_bytes=shares.shm_bytes or 0,
            ),
            fuse_count=fuse_count,
            own_network=config.network == "none",
        )
        for line in lines:
            self._parts.log("notice", line)
        self._parts.group_servers()

    def _prepare_host_mounts(self, config: BootConfig) -> tuple[HostMount, ...]:
        """Decide about the configured host directories, and start their servers.

        A server of ours stands in between for every caller: run by root, a program must not get at
        the host's files with the host's own ownership; and a bind mount hides directory entries,
        not names, so what the host replaces would come into view (rename(2) over a mount point of
        another mount namespace).
        """
        self._close_off(config)
        out: list[HostMount] = []
        for entry in config.mounts:
            if entry.type == "hostfs":
                index = _FIRST_HOST_FUSE + 1 + len(out)
                out.append(self._served(entry.target, entry.source or ".", index))
        return tuple(out)

    def _close_off(self, config: BootConfig) -> None:
        """Let no link be followed in what programs are shown, before any way leads through it."""
        layers = config.runtime_mounts.layers
        sources = tuple(entry.source or "." for entry in config.mounts if entry.type == "hostfs")
        names = (*config.host_directories, *(layers or ()), *sources)
        self._ground.close_off(dict.fromkeys(names))
        fresh = self._request.freshness
        for option, path in (("--pin-file", fresh.pin_file), ("--pin-command", fresh.pin_command)):
            if path is not None:
                require_outside(path, option, self._ground, what="in what programs are shown")
        self._roots = self._known_roots()

    def _known_roots(self) -> tuple[Roots, Roots]:
        if self._roots is None:
            config = self.chain.config
            host_roots = Roots(config.host_directories, self._ground)
            layers = config.runtime_mounts.layers
            layer_roots = host_roots if layers is None else Roots(layers, self._ground)
            self._roots = host_roots, layer_roots
        return self._roots

    def _private(self) -> tuple[str, ...]:
        """Return what is never shown inside: what the caller named, the files of named keys, and
        the host files of the writable layer.
        """
        config = self.chain.config
        files = [key.source for key in config.runtime_mounts.keys if os.path.isabs(key.source)]
        private = [mountkeys.key_path(source, self._ground) for source in files]
        if not config.upper.temporary:
            private.append(self._ground.spelled(config.upper.source))
        return (*self._request.private, *private)

    def _served(self, target: str, source: str, index: int) -> HostMount:
        shown, directory = hostdirs.find(source, ground=self._ground, private=self._private())
        server = self._parts.new_server(f"hostfs {target}")
        orders = Orders(
            HOST,
            host_path=shown.path,
            host=directory,
            hidden=shown.hidden,
            instance=shown.instance,
            private=self._private(),
            home=self._instance,
            read_only=shown.read_only,
            one_owner=self._parts.sandbox.ids.is_single,
        )
        self.servers[index] = server
        # It opens while everything else goes on; whoever mounts it waits for that.
        opened = self._parts.loop.start(self._open_host(server, orders))
        return HostMount(target, shown, server, index, opened)

    @staticmethod
    async def _open_host(server: FsServer, orders: Orders) -> bytes:
        try:
            return await server.open(orders, stage="config")
        finally:
            orders.close()

    async def _mount_init(self, config: BootConfig) -> None:
        parts = self._parts
        files = {}
        if self._request.image_key is not None:
            files[IMAGE_KEY_FILE] = self._request.image_key.hex("-").encode() + b"\n"
        mac = await parts.init_server.open(
            Orders(
                TRANSIENT,
                image=self._request.initfs,
                ground=self._ground,
                expected_mac=config.init_mac,
                files=files,
                one_owner=parts.sandbox.ids.is_single,
            ),
            stage="initfs",
        )
        # The init FS has it, for init; from here on it is for init to say which key it wants used.
        self._request = replace(self._request, image_key=None)
        self.chain.accept_initfs(mac)
        self._files = hostfiles.load()
        for line in self._files[1]:
            parts.log("warning", line)
        self.servers[_INIT_FUSE] = parts.init_server
        await self._switch(
            Tree(
                _INIT_FUSE,
                has_id_range=not parts.sandbox.ids.is_single,
                terminal=self._request.terminal,
            )
        )

    async def _switch(self, tree: Tree) -> None:
        files, _ = self._files
        fds = tuple(sealed_file(os.path.basename(file.target), file.content) for file in files)
        targets = tuple(TextFile(file.target, number) for number, file in enumerate(files))
        try:
            await self._parts.sandbox.switch_root(
                Tree(
                    tree.root_fuse,
                    has_id_range=tree.has_id_range,
                    host_directories=tree.host_directories,
                    memory=tree.memory,
                    shm_bytes=self.shares().shm_bytes,
                    files=targets,
                    terminal=tree.terminal,
                ),
                fds,
            )
        finally:
            for fd in fds:
                os.close(fd)

    async def _run_init(self, config: BootConfig) -> None:
        self.chain.init_started()
        try:
            program = await self._parts.sandbox.spawn(
                SpawnRequest(
                    path=INIT.encode(),
                    cwd=b"/",
                    argv=(b"init",),
                    env=self.environment_for(self._request.environment),
                    umask=self._request.umask,
                    fds=self._stdio,
                )
            )
        except (NotAllowedError, NotFoundError) as exc:
            # 126 and 127 are for the program that was asked for.
            raise Error(
                "init cannot be started",
                stage="init",
                subject=INIT,
                expected="an executable file in the init FS",
                found=exc.found,
                hint="a script's interpreter or a binary's loader may be what is missing; `serdab "
                "build` seals the init FS anew",
            ) from exc
        except Error as exc:
            exc.stage = "init"
            raise
        status = await program.ended
        if self._refusal is not None:
            raise self._refusal
        self.chain.init_exited(os.waitstatus_to_exitcode(status))

    # MountRootFS ---------------------------------------------------------------------------

    def check_mount_root(self) -> None:
        """Refuse call 363 when it is not its time; also called from fronts, see ``intake``.

        Raises:
            CallError: EPERM.
        """
        if self.chain.state is not State.INIT or self._mounting:
            raise CallError(errno.EPERM, "rootfs: MountRootFS works once, while init runs")

    async def mount_root(self, caller: Caller) -> None:
        """Perform call 363.

        Raises:
            CallError: refused, the errno for init.
        """
        # First of all, so that a second call changes nothing: not even the environment.
        self.check_mount_root()
        self._mounting = True
        try:
            key, config = caller.notification.arguments[:2]
            if key or config:
                request = await caller.read(lambda memory: read_request(memory, key, config))
            else:
                request = Request(None, None)
            caller.check_alive()
            await self._mount_requested(request)
            if self._refusal is not None:
                # Init tried again and got further: the operator hears of the first attempt too.
                self._parts.log("error", str(self._refusal))
                self._refusal = None
        except Error as exc:
            # Init gets an errno; whoever booted us hears the whole of it, once, when init is done.
            self._refusal = exc
            is_other = isinstance(exc, LayerMismatch)
            raise CallError(errno.EINVAL if is_other else errno.EIO) from exc
        finally:
            self._mounting = False

    async def _mount_requested(self, request: Request) -> None:
        config = self.chain.config
        wish = request.config or RootConfig()
        is_runtime = wish.lower is not None
        if not is_runtime:
            check_key_fits(config, request.key)
        host_mounts = self._host_mounts
        if wish.hostfs_source is not None:
            host_mounts = self._replace_host_mount(wish.hostfs_source, wish.hostfs_target)
        orders = self._root_orders(config, request)
        mac = await self._parts.root_server.open(orders, stage="rootfs")
        for mount in host_mounts:
            await mount.opened
        # From here on there is no second try: the chain has its decision, the tree follows it.
        is_previous = self._request.previous is not None and not is_runtime
        self.chain.accept_rootfs(
            mac,
            runtime=is_runtime or is_previous,
            caller_mac=orders.expected_mac if is_previous else wish.root_mac,
        )
        self.servers[_ROOT_FUSE] = self._parts.root_server
        await self._switch(self._app_tree(config, host_mounts))
        self._host_mounts = host_mounts
        if config.runtime_mounts.keys:
            self._mount_rules = mountkeys.with_image_key(self.mount_rules(), request.key)
        if wish.env is not None:
            self._trusted = environment.merge_trusted(self._trusted, wish.env)
        self.entry_points = config.entry_points
        if wish.entry_point is not None:
            self.entry_points = (wish.entry_point,)

    def _root_orders(self, config: BootConfig, request: Request) -> Orders:
        wish = request.config or RootConfig()
        fresh = self._request.freshness
        key = volume_key(
            # What is public is the key built in for the configured image, not one init brings.
            config if wish.lower is None else replace(config, builtin_image_key=False),
            request.key,
            platform=self._platform,
            mrsigner=self.chain.signer,
            mrenclave=self.chain.descriptor.mrenclave(),
        )
        upper = wish.upper if wish.upper is not None else config.upper.source
        is_temporary = config.upper.temporary and wish.upper is None
        volume = "" if is_temporary else upper
        if wish.lower is not None:
            image, mac = wish.lower, wish.root_mac
        elif self._request.previous is not None:
            mac = self._previous_mac(volume, key)
            image = os.path.join(self._request.previous, mac.hex())
        else:
            image, mac = self._request.rootfs, config.root_mac
        return Orders(
            UNION,
            image=image,
            image_key=request.key,
            expected_mac=mac,
            volume=volume,
            volume_key=key.key,
            source=key.source,
            one_owner=self._parts.sandbox.ids.is_single,
            max_bytes=(
                self.shares().layer_bytes(config.upper.max_bytes)
                if is_temporary
                else config.upper.max_bytes or 0
            ),
            freshness="off" if is_temporary else config.freshness,
            conf_mac=self.chain.descriptor.conf_mac.value,
            version_number=self.chain.descriptor.security_version,
            accept_rollback=fresh.accept_rollback,
            pin_file=fresh.pin_file or "",
            pin_command=fresh.pin_command or "",
            expect_upper=self._expect_upper,
            ground=self._ground,
        )

    def _previous_mac(self, volume: str, key: VolumeKey) -> bytes:
        """Return the root MAC of the image that the writable layer belongs to.

        The layer's anchor says it, sealed under the layer's key; that the operator asked for the
        previous image is what allows another one than the measured.
        """
        from serdab.sefs.anchor import read_source
        from serdab.sefs.hostdir import HostDir
        from serdab.sefs.lowerbinding import bound_lower_in

        with self._ground.directory(volume) as place:
            directory = HostDir(place.fd, place.path)
            try:
                return bound_lower_in(directory, Key(key.key))
            except WrongKeyError as exc:
                recorded = read_source(directory)
                raise keysource.wrong_key(recorded, key.source, subject=exc.subject) from None

    def _replace_host_mount(self, source: str, target: str | None) -> tuple[HostMount, ...]:
        """Let init name what the first host directory of the configuration is."""
        if not self._host_mounts:
            raise CallError(errno.ENOENT, "rootfs: hostfs_source is given, no hostfs is configured")
        mount = self._served(target or "/host", source, _FIRST_HOST_FUSE)
        return (mount, *self._host_mounts[1:])

    def _app_tree(self, config: BootConfig, host_mounts: tuple[HostMount, ...]) -> Tree:
        return Tree(
            _ROOT_FUSE,
            has_id_range=not self._parts.sandbox.ids.is_single,
            memory=tuple(
                Memory(entry.target, self.shares().ramfs_bytes)
                for entry in config.mounts
                if _is_memory(entry)
            ),
            host_directories=tuple(
                HostDirectory(mount.target, mount.fuse, read_only=mount.shown.read_only)
                for mount in host_mounts
            ),
            terminal="/dev/console" if self._request.terminal else None,
        )


def _is_memory(entry: MountEntry) -> bool:
    return entry.type == "ramfs"


def measured_lines(chain: BootChain) -> list[tuple[str, str, str]]:
    """Return (stage, what, digest) of everything that was measured."""
    return [(item.stage, item.subject, str(item.digest)) for item in chain.measured]
