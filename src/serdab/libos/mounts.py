# SPDX-License-Identifier: Apache-2.0
"""mount(2) and umount2(2) of programs: from the notification to the mount, and back.

Above: ``kernel``. Below: ``mountcall`` (arguments), ``mountrules`` (policy), ``worker`` (the static
process that acts inside), ``fsclient`` (one fs server per mount).

The order for a mount: copy and check the arguments, then who calls (both in a front); open the
caller's root and working directory; make sure that the caller still waits; resolve the target; open
the file system; mount it at the target that was resolved; answer. If nobody waits for the answer
any more, the mount is taken off again, so that one call is one mount. A refused call changes
nothing: the file system is opened after the target was found, and is not mounted before it was
verified.

umount2(2) takes off what is on top, whichever descriptor it is given (path_resolution(7)). So the
tree changes in turns: from a mount to its answer, and its undoing where nobody waits for that,
nothing else is mounted or unmounted; and an umount looks in its turn whether it is still on top.

Threads: one. Calls of different programs are coroutines side by side; whatever may block (the
caller's memory, a path inside, opening a volume) happens in a thread, the worker, or the fs server.

Security:
    1. The instance's own namespaces are entered, never those a caller brings: a caller in another
       mount namespace gets EPERM.
    2. Only what programs mounted can be unmounted: /proc, /dev and the configured ones stay.
    3. The number of mounts is bounded, and so are the servers of those that are on their way out:
       each has a process on the host. What is mounted in memory has a size, see ``ramfs``.
    4. Who is not the inner root mounts on its own directories, and unmounts its own mounts, unless
       the policy opens that: else any user would put programs in the way of the inner root's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from serdab.config.mounts import MountPolicy
from serdab.errors import Error
from serdab.libos import mountcall, mountrules, ramfs
from serdab.libos.callerplace import Where, check_program, shown
from serdab.libos.early import launcher_file
from serdab.libos.fsclient import FsServer
from serdab.libos.intake import CallError, Look
from serdab.libos.loop import Loop
from serdab.libos.mountcall import BadCall, MountCall, UmountCall
from serdab.libos.mountrules import Rules
from serdab.libos.notify import TURN_PATIENCE_S, Caller, Settle
from serdab.libos.sandbox import Sandbox
from serdab.libos.shares import Shares
from serdab.libos.tree import FUSE_OPTIONS
from serdab.libos.turns import Turns
from serdab.libos.users import OPEN_HINT, is_owner
from serdab.libos.worker import Mounted, Refused, Target, Worker
from serdab.structs import mutable, replace

_SERVER_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
_NOT_READY: Final = "mount: the instance is not ready"
#: How long an fs server waits for a volume that another one of this instance is closing.
_CLOSING_PATIENCE_MS: Final = 10_000


@mutable
class _Mount:
    """One mount of a program. ``server`` is None for a file system of the kernel's own.
    ``user`` mounted it.

    ``place`` is the same for mounts over each other: the directory under all of them.
    """

    words: str
    server: FsServer | None
    place: tuple[int, int]
    device: int
    user: int
    is_leaving: bool = False

    def has_lost_its_server(self) -> bool:
        """Return whether its server ended without closing the file system."""
        return (
            self.server is not None
            and self.server.closed.is_done
            and bool(self.server.closed.result())
        )


class RuntimeMounts:
    """The mounts of the programs of one instance.

    ``new_server(name)`` starts an fs server, ``policy()`` returns the measured policy, and
    ``rules()`` what holds now (None: nothing may be mounted yet), ``shares()`` how the memory limit
    is divided, ``on_device(device)`` hears of a new FUSE mount, ``log`` is the operator's.
    ``policy`` is called from fronts, see ``intake``.
    """

    def __init__(
        self,
        loop: Loop,
        sandbox: Sandbox,
        *,
        new_server: Callable[[str], FsServer],
        policy: Callable[[], MountPolicy | None],
        rules: Callable[[], Rules | None],
        shares: Callable[[], Shares],
        on_device: Callable[[int], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._sandbox = sandbox
        self._new_server = new_server
        self._policy = policy
        self._rules = rules
        self._shares = shares
        self._ramfs = ramfs.RamfsMounts(loop, lambda: shares().memory_bytes)
        self._on_device = on_device
        self._log = log
        self._program = -1
        self._has_ended = False
        self._mounts: dict[int, _Mount] = {}  # at one place the last is on top
        self._turn = Turns(loop, 1)
        self._pending = 0
        self._closing = 0
        self._workers: set[Worker] = set()
        self.look_at_mount = Look("mount", self._read_mount, self._admit)
        self.look_at_umount = Look("umount", mountcall.read_umount, self._admit)

    def forget_all(self) -> None:
        """The tree was switched: what was mounted in the old one went with it."""
        for mount in self._mounts.values():
            self._watch_closing(mount.server)
        self._mounts.clear()

    def end(self) -> None:
        """The sandbox is gone: end the workers that are still on their way in it."""
        self._has_ended = True
        for worker in self._workers:
            worker.kill()
        self._ramfs.end()
        if self._program >= 0:
            os.close(self._program)
            self._program = -1

    # mount(2) ------------------------------------------------------------------------------

    async def mount(self, caller: Caller, call: MountCall) -> Settle:
        """Perform a mount; the result is told whether the caller got the answer.

        Raises:
            CallError: refused, the errno for the program.
            CallerDied: nobody waits for it any more.
        """
        with Where("mount", self._sandbox, caller) as where:
            caller.check_alive()
            rules = self._rules_now()
            try:
                mountrules.check_key(rules, call)
            except BadCall as exc:
                raise CallError(exc.code, f"mount: {exc.reason}") from None
            self._check_room(rules)
            self._pending += 1
            worker = self._start_worker()
            try:
                target = await self._resolve(
                    worker,
                    where,
                    call.target,
                    nofollow=call.nofollow,
                    fuse=call.type != "ramfs",
                )
                if target.is_root:
                    raise CallError(errno.EPERM, "mount: the root is not mounted over")
                self._check_target(rules, where.user, call, target)
                if not target.in_tree:
                    # mount(2) would say so, when a file system had been made for it already.
                    raise CallError(errno.EINVAL, "mount: the target lies outside the instance")
                if target.is_removed:
                    raise CallError(errno.ENOENT, "mount: the target was removed")
                mount_id = await self._mount_at(caller, where.user, worker, rules, call, target)
            except BaseException:
                await self._dismiss(worker)
                raise
            finally:
                self._pending -= 1

        async def settle(*, delivered: bool) -> None:
            try:
                if not delivered and mount_id in self._mounts:
                    await self._undo(worker, mount_id)
            except (Refused, Error) as exc:
                self._log("error", f"mount: a mount without a caller could not be undone: {exc}")
            finally:
                self._turn.give_back()
                await self._dismiss(worker)

        return settle

    async def _undo(self, worker: Worker, mount_id: int) -> None:
        mount = self._mounts[mount_id]
        mount.is_leaving = True
        try:
            await worker.undo()
            self._forget(mount_id)
        finally:
            mount.is_leaving = False

    # In a front, see ``intake``:

    def _read_mount(self, memory: mountcall.Readable, arguments: tuple[int, ...]) -> MountCall:
        call = mountcall.read_mount(memory, arguments)
        mountrules.check(self._policy_now(), call)
        return call

    def _policy_now(self) -> MountPolicy:
        policy = self._policy()
        if policy is None:
            raise CallError(errno.EPERM, _NOT_READY)
        return policy

    def _admit(self, thread: int) -> None:
        """Refuse programs that may not mount, and callers in a mount namespace of their own."""
        policy = self._policy_now()
        if policy.programs != ("/",):
            if os.readlink(f"/proc/{thread}/ns/user") != self._sandbox.user_namespace:
                # Its root has power over what it is told by, such as its memory and its links.
                raise CallError(
                    errno.EPERM,
                    "mount: not from a user namespace of its own, where programs are named",
                )
            check_program(policy, f"/proc/{thread}/exe", self._sandbox.pid)
        theirs = os.readlink(f"/proc/{thread}/ns/mnt")
        if theirs != self._sandbox.mount_namespace:
            raise CallError(
                errno.EPERM, "mount: only from the instance's own mount namespace, not a nested one"
            )

    def _rules_now(self) -> Rules:
        rules = self._rules()
        if rules is None or self._has_ended:
            raise CallError(errno.EPERM, _NOT_READY)
        return rules

    async def _resolve(
        self, worker: Worker, where: Where, path: bytes, *, nofollow: bool, fuse: bool
    ) -> Target:
        try:
            rest = where.enter(path)
            return await worker.resolve(
                where.place,
                rest,
                nofollow=nofollow,
                fuse=fuse,
                drop_groups=self._sandbox.ids.drop_groups,
            )
        except Refused as exc:
            if exc.at_target:
                raise CallError(exc.code, f"{where.what}: {shown(path)}: {exc}") from None
            raise CallError(
                errno.EIO, f"mount: the worker could not enter the sandbox: {exc}"
            ) from None

    def _check_target(self, rules: Rules, user: int, call: MountCall, target: Target) -> None:
        """Refuse a directory of somebody else, and one that has somebody else's mount on it."""
        if mountrules.is_free(rules.policy, user):
            return
        top = self._find_top(self._place_of(target))
        if top is None:
            found, what = target.owner, "not a directory of the caller"
        else:
            # Whichever directory is named, a mount comes on top of what is mounted there.
            found, what = top[1].user, "another user's mount is on it"
        if not is_owner(user, found):
            raise CallError(
                errno.EPERM,
                f"mount: {shown(call.target)}: {what} (expected owner {user}, found {found}); "
                f"hint: {OPEN_HINT}",
            )

    async def _mount_at(
        self,
        caller: Caller,
        user: int,
        worker: Worker,
        rules: Rules,
        call: MountCall,
        target: Target,
    ) -> int:
        """Mount at the target and return the id; the turn is kept until the call is settled."""
        patience_ms = _CLOSING_PATIENCE_MS if self._closing else 0
        is_small = self._shares().memory_bytes is not None
        orders = mountrules.orders(rules, call, user, patience_ms=patience_ms, is_small=is_small)
        words = f"{call.type} {os.fsdecode(call.target)}"
        attributes = mountrules.attributes(call.flags)
        server = None
        if orders is not None:
            server = self._new_server(words)
            try:
                await server.open(orders, stage="mount")
            except Error as exc:
                server.dismiss()
                reason = f"{exc}; hint: {exc.hint}" if exc.hint else str(exc)
                raise CallError(mountrules.refusal_code(exc.kind, call.type), reason) from None
            if server.is_read_only:
                attributes |= mountrules.READ_ONLY
        try:
            await self._take_turn("mount")
            try:
                caller.check_alive()
                self._check_target(rules, user, call, target)  # others had their turn meanwhile
                mounted = await self._attach(worker, attributes, is_fuse=server is not None)
                if server is not None and server.closed.is_done:
                    os.close(mounted.fd)
                    await worker.undo()
                    raise CallError(errno.EIO, f"mount: {words}: its fs server has ended")
            except BaseException:
                self._turn.give_back()
                raise
        except BaseException:
            if server is not None:
                server.dismiss()
                self._watch_closing(server)
            raise
        mount = _Mount(words, server, self._place_of(target), mounted.device, user)
        self._mounts[mounted.mount_id] = mount
        if server is not None:
            server.serve(mounted.fd)
            self._on_device(mounted.device)
            mount_id = mounted.mount_id
            server.closed.when_done(lambda: self._drop(mount_id, mount))
        return mounted.mount_id

    def _drop(self, mount_id: int, mount: _Mount) -> None:
        # What has lost its server is there until somebody unmounts it.
        if self._mounts.get(mount_id) is mount and not mount.has_lost_its_server():
            del self._mounts[mount_id]

    async def _attach(self, worker: Worker, attributes: int, *, is_fuse: bool) -> Mounted:
        try:
            if is_fuse:
                return await worker.mount("fuse", FUSE_OPTIONS, attributes)
            return await self._attach_ramfs(worker, attributes)
        except Refused as exc:
            raise CallError(exc.code, f"mount: the system refused: {exc}") from None

    async def _attach_ramfs(self, worker: Worker, attributes: int) -> Mounted:
        size = self._ramfs.take()
        try:
            mounted = await worker.mount("tmpfs", ramfs.options(size), attributes)
        except BaseException:
            self._ramfs.not_mounted(size)
            raise
        try:
            self._ramfs.mounted(mounted.fd, size)
        finally:
            os.close(mounted.fd)
        return replace(mounted, fd=-1)

    # umount2(2) ----------------------------------------------------------------------------

    async def umount(self, caller: Caller, call: UmountCall) -> Settle:
        """Perform an umount; raises as :meth:`mount` does."""
        with Where("umount", self._sandbox, caller) as where:
            caller.check_alive()
            rules = self._rules_now()
            user = None if mountrules.is_free(rules.policy, where.user) else where.user
            worker = self._start_worker()
            try:
                target = await self._resolve(
                    worker, where, call.target, nofollow=call.nofollow, fuse=False
                )
                if target.is_root:
                    raise CallError(errno.EPERM, "umount: the root is not unmounted")
                if not target.is_mount:
                    raise CallError(errno.EINVAL, "umount: the target is not the root of a mount")
                while not await self._umount_top(caller, user, worker, target):
                    pass
            finally:
                await self._dismiss(worker)
        return _nothing

    async def _umount_top(
        self, caller: Caller, user: int | None, worker: Worker, target: Target
    ) -> bool:
        """Unmount what is on top at the target; return False if something came over it.

        ``user``: who may do that with its own mounts only.
        """
        place = self._place_of(target)
        mount_id, mount = self._top_at(place)
        if mount.is_leaving:
            raise CallError(errno.EINVAL, "umount: it is being unmounted already")
        whole = self._with_within(mount_id)
        self._check_mounter(user, whole)
        mount.is_leaving = True
        try:
            for one_id, one in whole:
                # Of others than the target the kernel hands over the rest when they are detached.
                code = await self._make_durable(worker if one_id == target.mount_id else None, one)
                if code and not one.has_lost_its_server():
                    raise CallError(code, f"umount: {one.words}: {os.strerror(code)}")
            await self._take_turn("umount")
            try:
                caller.check_alive()
                if mount_id not in self._mounts:
                    return True  # its caller was gone, or it went with another
                if self._top_at(place)[0] != mount_id:
                    return False
                self._check_mounter(user, self._with_within(mount_id))
                await worker.detach()
                self._forget(mount_id)
            except Refused as exc:
                raise CallError(exc.code, f"umount: {mount.words}: {exc}") from None
            finally:
                self._turn.give_back()
        finally:
            mount.is_leaving = False
        lost = [one for _, one in whole if one.has_lost_its_server()]
        for one in lost:
            if one.server is not None:
                one.server.is_given_up = True
        if lost:
            reason = f"umount: {lost[0].words}: it had lost its fs server, and what was not synced"
            raise CallError(errno.EIO, reason)
        return True

    @staticmethod
    def _check_mounter(user: int | None, mounts: list[tuple[int, _Mount]]) -> None:
        for _, mount in mounts:
            if user is not None and mount.user != user:
                raise CallError(
                    errno.EPERM,
                    f"umount: {mount.words}: another user's mount (expected one of user {user}, "
                    f"found one of {mount.user}); hint: {OPEN_HINT}",
                )

    def _place_of(self, target: Target) -> tuple[int, int]:
        below = self._mounts.get(target.mount_id) if target.is_mount else None
        return (target.mount_id, target.inode) if below is None else below.place

    def _find_top(self, place: tuple[int, int]) -> tuple[int, _Mount] | None:
        for mount_id, mount in reversed(self._mounts.items()):
            if mount.place == place:
                return mount_id, mount
        return None

    def _top_at(self, place: tuple[int, int]) -> tuple[int, _Mount]:
        top = self._find_top(place)
        if top is None:
            raise CallError(errno.EPERM, "umount: only what programs mounted can be unmounted")
        return top

    @staticmethod
    async def _make_durable(worker: Worker | None, mount: _Mount) -> int:
        """Make a file system durable; return an errno."""
        if mount.server is None or mount.server.closed.is_done:
            return 0
        try:
            if worker is not None:
                await worker.write_back()
        except Refused as exc:
            if exc.code not in _SERVER_GONE:
                return exc.code
        return await mount.server.sync()

    # Housekeeping --------------------------------------------------------------------------

    def _check_room(self, rules: Rules) -> None:
        wanted = rules.policy.max_mounts
        most = self._shares().mounts(wanted)
        if self._count() >= most:
            self._forget_what_left()
        if self._count() < most:
            return
        why = "serdab.runtime_mounts.max_mounts"
        if most < wanted:
            why = f"of the {wanted} of {why} so many fit into resource_limits.user_space_max_size"
        raise CallError(errno.ENOSPC, f"mount: there are {most} mounts already ({why})")

    def _count(self) -> int:
        # Whoever has a file open keeps the server of what was unmounted.
        return len(self._mounts) + self._pending + self._closing

    def _forget_what_left(self) -> None:
        """Forget what nobody unmounted: whoever removes a directory in a mount namespace where
        nothing is mounted on it takes away what is mounted on it here (mount_namespaces(7)).
        """
        from serdab.linux.mounts import devices_in

        try:
            there = devices_in(self._sandbox.pid)
        except OSError:
            return  # /proc hides it from us (hidepid, proc(5))
        # A device number is given to the next mount when it is free.
        newest = {mount.device: mount_id for mount_id, mount in self._mounts.items()}
        for mount_id, mount in list(self._mounts.items()):
            if mount.device not in there or newest[mount.device] != mount_id:
                self._forget(mount_id)

    def _forget(self, mount_id: int) -> None:
        """A mount was taken off, and what was mounted within went with it."""
        mount = self._mounts.pop(mount_id, None)
        if mount is not None:
            self._watch_closing(mount.server)
        for within in self._within(mount_id):
            self._forget(within)

    def _within(self, mount_id: int) -> list[int]:
        return [i for i, other in self._mounts.items() if other.place[0] == mount_id]

    def _with_within(self, mount_id: int) -> list[tuple[int, _Mount]]:
        found = [(mount_id, self._mounts[mount_id])]
        for within in self._within(mount_id):
            found += self._with_within(within)
        return found

    async def _take_turn(self, what: str) -> None:
        if not await self._turn.take(TURN_PATIENCE_S):
            raise CallError(errno.EAGAIN, f"{what}: a mount or umount before it does not end")

    def _watch_closing(self, server: FsServer | None) -> None:
        """Count file systems that are on their way out: who opens one of them again waits."""
        if server is None or server.closed.is_done:
            return
        self._closing += 1
        server.closed.when_done(self._closed_one)

    def _closed_one(self) -> None:
        self._closing -= 1

    def _start_worker(self) -> Worker:
        if self._program < 0:
            self._program = launcher_file()
        worker = Worker(self._loop, self._program)
        self._workers.add(worker)
        return worker

    async def _dismiss(self, worker: Worker) -> None:
        self._workers.discard(worker)
        await worker.close()


async def _nothing(*, delivered: bool) -> None:
    """Nothing is left to do, whether the caller heard of it or not."""
