/* SPDX-License-Identifier: Apache-2.0 */
/* The worker: one process for one mount(2) or umount2(2) of a program inside.
 *
 * The kernel process has opened the caller's root, working directory and namespaces and made sure
 * that the caller still waits; it hands over the descriptors. The worker joins the namespaces,
 * takes the caller's root as its own, finds the target, and mounts or unmounts there. It gets no
 * key and nothing of a volume. Programs cannot see it: it is in no pid namespace of theirs.
 *
 * Security:
 *  1. The target is resolved once. From then on its descriptor is used, so nobody can put
 *     something else in its place before the mount.
 *  2. Resolving starts at the caller's root and ends there ("..", absolute links), follows no magic
 *     link, and happens here rather than in the kernel process, since a file system may be slow.
 *  3. A mount that turns out to have no caller any more is taken off by its descriptor, before
 *     anything can be mounted over it: ``libos/mounts.py`` sees to that. */
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/stat.h>

#include "common.h"

#define STATX_MNT_ID_UNIQUE_ 0x4000u /* Linux 6.8; older kernels give the reused id */
#define ROOTS 2

static int fuse_fd = -1, target_fd = -1, mount_fd = -1, fds_fd = -1;

static void answer_with(u16 op, u16 flags, long result, u32 serial, u32 value, int fd)
{
	struct header h;

	memset(&h, 0, sizeof(h));
	h.op = op;
	h.flags = flags;
	h.result = (s32)(result < 0 ? result : 0);
	h.serial = serial;
	h.value = value;
	send(&h, fd);
}

static void answer(u16 op, long result, u32 serial, u32 value, int fd)
{
	answer_with(op, 0, result, serial, value, fd);
}

/* Asks nothing of a file system's server: what the kernel remembers is enough. */
static long look(long fd, struct statx *st)
{
	memset(st, 0, sizeof(*st));
	return SYS5(__NR_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
		    STATX_INO | STATX_UID | STATX_MNT_ID_UNIQUE_, st);
}

static int is_same(const struct statx *a, const struct statx *b)
{
	return a->stx_mnt_id == b->stx_mnt_id && a->stx_ino == b->stx_ino &&
	       a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor;
}

/* fds: user namespace, mount namespace, root, working directory. */
static long enter(const struct message *m, struct statx *roots)
{
	u32 flags = m->header->value;
	long r, here;

	/* Of outside: inside, programs decide what lies at /proc. */
	r = SYS4(__NR_openat, AT_FDCWD, "/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (r < 0)
		return r;
	fds_fd = (int)r;
	r = SYS2(__NR_setns, m->fds[0], CLONE_NEWUSER);
	/* Now, with the ids of outside: /dev/fuse may admit host root only, and whoever opens it
	 * must belong to the user namespace that mounts (fuse_get_tree() compares them). */
	if (r >= 0 && (flags & WORK_FUSE)) {
		r = SYS4(__NR_openat, AT_FDCWD, "/dev/fuse", O_RDWR | O_CLOEXEC, 0);
		fuse_fd = (int)r;
	}
	if (r >= 0 && (flags & WORK_DROP_GROUPS))
		r = SYS2(__NR_setgroups, 0, 0);
	if (r >= 0)
		r = SYS3(__NR_setresgid, 0, 0, 0);
	if (r >= 0)
		r = SYS3(__NR_setresuid, 0, 0, 0);
	if (r >= 0)
		r = SYS5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (r >= 0)
		r = SYS2(__NR_setns, m->fds[1], CLONE_NEWNS);
	if (r < 0)
		return r;
	here = SYS4(__NR_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (here < 0)
		return here;
	r = look(here, &roots[0]);
	SYS1(__NR_close, here);
	if (r >= 0)
		r = look(m->fds[2], &roots[1]);
	if (r >= 0)
		r = SYS1(__NR_fchdir, m->fds[2]);
	if (r >= 0)
		r = SYS1(__NR_chroot, ".");
	return r;
}

/* With the caller's root and working directory as our own, a path means what it means to the
 * caller: ".." and absolute links stop at its root, as RESOLVE_IN_ROOT would make them. */
static long find(const struct message *m, const char *path)
{
	struct open_how how;
	long r;

	memset(&how, 0, sizeof(how));
	how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
	if (m->header->value & WORK_NOFOLLOW)
		how.flags |= O_NOFOLLOW;
	how.resolve = RESOLVE_NO_MAGICLINKS;
	if (path[0] != '/') {
		r = SYS1(__NR_fchdir, m->fds[3]);
		if (r < 0)
			return r;
	}
	return SYS4(NR_OPENAT2, AT_FDCWD, path, &how, sizeof(how));
}

/* Whether something can be mounted there: it lies in a mount of this namespace, neither in a
 * detached one nor in another namespace's. A copy that nobody sees asks the kernel what the mount
 * itself would (open_tree(2): EINVAL), before a file system is made for it; the table of mounts says
 * it as well, but a /proc with hidepid may not show that. */
static int is_in_tree(long fd)
{
	long copy = SYS3(__NR_open_tree, fd, "",
			 OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE |
				 AT_NO_AUTOMOUNT);

	if (copy >= 0)
		SYS1(__NR_close, copy);
	return copy != -EINVAL;
}

static void resolve(const struct message *m)
{
	struct statx roots[ROOTS], st;
	u16 flags = 0;
	long r = -EBADMSG;

	if (m->fd_count != 4 || m->body_len < 1 || m->body[m->body_len - 1]) {
		answer(OP_RESOLVED, r, WORK_AT_ENTER, 0, -1);
		return;
	}
	r = enter(m, roots);
	if (r < 0) {
		answer(OP_RESOLVED, r, WORK_AT_ENTER, 0, -1);
		return;
	}
	r = find(m, (const char *)m->body);
	if (r >= 0) {
		target_fd = (int)r;
		r = look(target_fd, &st);
	}
	if (r < 0) {
		answer(OP_RESOLVED, r, WORK_AT_TARGET, 0, -1);
		return;
	}
	for (int i = 0; i < ROOTS; i++)
		if (is_same(&roots[i], &st))
			flags |= WORK_IS_ROOT;
	if (st.stx_attributes & STATX_ATTR_MOUNT_ROOT)
		flags |= WORK_IS_MOUNT;
	if (!st.stx_nlink)
		flags |= WORK_NO_LINKS;
	if (is_in_tree(target_fd))
		flags |= WORK_IN_TREE;
	/* The lower half tells two mounts of one instance apart as well as the whole. */
	answer_with(OP_RESOLVED, flags, 0, (u32)st.stx_mnt_id, st.stx_uid, target_fd);
}

/* body: type, options, each ended by NUL; value: MOUNT_ATTR_*. */
static void attach(const struct message *m)
{
	const char *type = (const char *)m->body, *options;
	char text[12];
	u32 device = 0, id = 0;
	struct statx st;
	long r = -EBADMSG;
	int is_fuse = fuse_fd >= 0;

	if (target_fd >= 0 && m->body_len > 1 && !m->body[m->body_len - 1]) {
		options = type + text_len(type) + 1;
		if (options > type + m->body_len - 1)
			options = "";
		r = new_mount(type, *options ? options : 0,
			      is_fuse ? decimal(fuse_fd, text) : 0, m->header->value);
	}
	if (r >= 0) {
		mount_fd = (int)r;
		r = look(mount_fd, &st);
		device = st.stx_dev_major << 20 | st.stx_dev_minor;
		id = (u32)st.stx_mnt_id;
	}
	if (r >= 0)
		r = SYS5(__NR_move_mount, mount_fd, "", target_fd, "",
			 MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	if (r < 0 && mount_fd >= 0) {
		SYS1(__NR_close, mount_fd);
		mount_fd = -1;
	}
	answer(OP_MOUNTED, r, id, device, r < 0 ? -1 : is_fuse ? fuse_fd : mount_fd);
	/* One holder only: with a second one, the death of the server would hang the programs. */
	if (is_fuse)
		SYS1(__NR_close, fuse_fd);
	fuse_fd = -1;
}

/* The kernel takes off what is on top there; who asks makes sure that it is this mount. By the link
 * of the descriptor, since fchdir(2) would ask a server that may be gone. */
static long detach(int fd)
{
	char text[12];
	long r = SYS1(__NR_fchdir, fds_fd);

	return r < 0 ? r : SYS2(__NR_umount2, decimal(fd, text), 2 /* MNT_DETACH */);
}

/* Dirty pages of mappings go to the server; what it has, it makes durable itself. */
static long write_back(void)
{
	long fd = SYS4(__NR_openat, target_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), r;

	if (fd < 0)
		return fd;
	r = SYS1(__NR_syncfs, fd);
	SYS1(__NR_close, fd);
	return r;
}

__attribute__((noreturn)) void work(void)
{
	struct message m;

	SYS5(__NR_prctl, PR_SET_NAME, "serdab-mount", 0, 0, 0);
	while (receive(&m) > 0) {
		switch (m.header->op) {
		case OP_RESOLVE:
			resolve(&m);
			break;
		case OP_MOUNT:
			attach(&m);
			break;
		case OP_UNDO:
			answer(OP_DETACHED, detach(mount_fd), 0, 0, -1);
			break;
		case OP_DETACH:
			answer(OP_DETACHED, detach(target_fd), 0, 0, -1);
			break;
		case OP_WRITE_BACK:
			answer(OP_WRITTEN, write_back(), 0, 0, -1);
			break;
		default:
			die("worker: unknown message\n", 0);
		}
		for (int i = 0; i < m.fd_count; i++)
			SYS1(__NR_close, m.fds[i]);
	}
	SYS1(__NR_exit_group, 0);
	__builtin_unreachable();
}
