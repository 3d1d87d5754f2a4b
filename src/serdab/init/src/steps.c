/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a list of mount steps. What to mount where is decided outside, in libos/tree.py; here is
 * only how.
 *
 * Security:
 *  1. Every mount is made detached (fsopen, fsmount, open_tree) and attached by descriptor.
 *  2. A path inside a new root is resolved with RESOLVE_IN_ROOT and without magic links, so no
 *     symbolic link in an image leads out of it.
 *  3. A plan that fails after its root was attached takes the root off again: what was there
 *     before stays. */
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>

#include "common.h"

#define FUSE_SLOTS 64

static int fuse_fds[FUSE_SLOTS];
static u32 fuse_opened;
static int registers[REGISTER_COUNT];
static int registers_ready;
static u32 fuse_device; /* of the mount made last, for the read-ahead setting */

/* Before the change to inner root: /dev/fuse may admit host root only, and the one who opens it
 * must belong to the user namespace that mounts (fuse_get_tree() compares them). */
long open_fuse(u32 count)
{
	if (count > FUSE_SLOTS)
		return -EINVAL;
	for (fuse_opened = 0; fuse_opened < count; fuse_opened++) {
		long fd = SYS4(__NR_openat, AT_FDCWD, "/dev/fuse", O_RDWR | O_CLOEXEC, 0);

		if (fd < 0)
			return fd;
		fuse_fds[fuse_opened] = (int)fd;
	}
	return 0;
}

static long base_fd(u8 reg)
{
	if (reg == REGISTER_NONE)
		return AT_FDCWD;
	return reg < REGISTER_COUNT ? registers[reg] : -1;
}

static long open_in(u8 reg, const char *path, u64 flags)
{
	struct open_how how;
	long fd = base_fd(reg);

	memset(&how, 0, sizeof(how));
	how.flags = flags | O_CLOEXEC;
	how.resolve = RESOLVE_NO_MAGICLINKS;
	if (fd != AT_FDCWD)
		how.resolve |= RESOLVE_IN_ROOT;
	return SYS4(NR_OPENAT2, fd, path, &how, sizeof(how));
}

/* The directory that holds the last component; *name is that component. */
static long open_parent(u8 reg, const char *path, const char **name)
{
	char dir[256];
	u64 len = text_len(path), cut = len;

	while (cut > 0 && path[cut - 1] != '/')
		cut--;
	*name = path + cut;
	if (cut + 1 >= sizeof(dir))
		return -ENAMETOOLONG;
	memcpy(dir, path, cut);
	dir[cut] = 0;
	return open_in(reg, cut ? dir : ".", O_PATH | O_DIRECTORY);
}

static long set_attributes(long fd, u64 attr)
{
	struct mount_attr change;

	if (!attr)
		return 0;
	memset(&change, 0, sizeof(change));
	change.attr_set = attr;
	return SYS5(NR_MOUNT_SETATTR, fd, "", AT_EMPTY_PATH, &change, sizeof(change));
}

/* "a,b=c" becomes one fsconfig call per item. The options come from us and hold no escapes. */
static long configure(long fs, const char *options)
{
	char item[128];

	while (options && *options) {
		u64 n = 0, equals = 0;
		long r;

		for (; *options && *options != ','; options++) {
			if (n + 1 >= sizeof(item))
				return -ENAMETOOLONG;
			if (*options == '=' && !equals)
				equals = n;
			item[n++] = *options;
		}
		item[n] = 0;
		if (*options == ',')
			options++;
		if (equals) {
			item[equals] = 0;
			r = SYS5(__NR_fsconfig, fs, FSCONFIG_SET_STRING, item, item + equals + 1, 0);
		} else {
			r = SYS5(__NR_fsconfig, fs, FSCONFIG_SET_FLAG, item, 0, 0);
		}
		if (r < 0)
			return r;
	}
	return 0;
}

/* Of a number that is not negative. */
const char *decimal(int value, char text[12])
{
	int n = 11;

	text[n] = 0;
	do
		text[--n] = (char)('0' + value % 10);
	while (value /= 10);
	return text + n;
}

long new_mount(const char *type, const char *options, const char *fd_text, u64 attr)
{
	long fs = SYS2(__NR_fsopen, type, FSOPEN_CLOEXEC), r = 0;

	if (fs < 0)
		return fs;
	if (fd_text)
		r = SYS5(__NR_fsconfig, fs, FSCONFIG_SET_STRING, "fd", fd_text, 0);
	if (r >= 0)
		r = configure(fs, options);
	if (r >= 0)
		r = SYS5(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
	if (r >= 0)
		r = SYS3(__NR_fsmount, fs, FSMOUNT_CLOEXEC, attr);
	SYS1(__NR_close, fs);
	return r;
}

static long step_fuse(const struct step *s, const char *options)
{
	char text[12];
	int fd;
	long mount, r;
	struct statx st;
	struct header h;

	if (s->value >= fuse_opened || fuse_fds[s->value] < 0)
		return -EBADF;
	fd = fuse_fds[s->value];
	mount = new_mount("fuse", options, decimal(fd, text), s->attr);
	if (mount < 0)
		return mount;
	fuse_device = 0;
	/* Asks nothing of the server: it does not run yet. */
	r = SYS5(__NR_statx, mount, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &st);
	if (r >= 0)
		fuse_device = st.stx_dev_major << 20 | st.stx_dev_minor;
	memset(&h, 0, sizeof(h));
	h.op = OP_FUSE;
	h.serial = s->value;
	h.value = fuse_device;
	r = send(&h, fd);
	/* One holder only: with a second one, the death of the server would hang the programs. */
	SYS1(__NR_close, fd);
	fuse_fds[s->value] = -1;
	if (r < 0) {
		SYS1(__NR_close, mount);
		return r;
	}
	return mount;
}

static long step_clone(const struct step *s, const char *path)
{
	long r;
	u32 flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;

	if (s->src == REGISTER_NONE) {
		r = SYS3(__NR_open_tree, AT_FDCWD, path, flags | AT_NO_AUTOMOUNT);
	} else {
		long from = path ? open_in(s->src, path, O_PATH) : base_fd(s->src);

		if (from < 0)
			return from;
		r = SYS3(__NR_open_tree, from, "", flags | AT_EMPTY_PATH);
		if (path)
			SYS1(__NR_close, from);
	}
	if (r >= 0) {
		long e = set_attributes(r, s->attr);

		if (e < 0) {
			SYS1(__NR_close, r);
			return e;
		}
	}
	return r;
}

static long step_attach(const struct step *s, const char *path)
{
	long target, r;

	if (base_fd(s->src) < 0) /* an optional step before found nothing to take */
		return -ENOENT;
	if (s->dst == REGISTER_NONE)
		return SYS5(__NR_move_mount, base_fd(s->src), "", AT_FDCWD, path,
			    MOVE_MOUNT_F_EMPTY_PATH);
	target = open_in(s->dst, path, O_PATH);
	if (target < 0)
		return target;
	r = SYS5(__NR_move_mount, base_fd(s->src), "", target, "",
		 MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	SYS1(__NR_close, target);
	return r;
}

static long copy_to(long out, int in)
{
	char chunk[4096];
	long r;

	SYS3(__NR_lseek, in, 0, 0);
	while ((r = SYS3(__NR_read, in, chunk, sizeof(chunk))) > 0) {
		long w = SYS3(__NR_write, out, chunk, r);

		if (w != r)
			return w < 0 ? w : -ENOSPC;
	}
	return r;
}

static long step_make(const struct step *s, const char *path, const char *text,
		      const struct message *m)
{
	const char *name;
	long parent = open_parent(s->src, path, &name), r;

	if (parent < 0)
		return parent;
	if (s->op == STEP_MKDIR) {
		r = SYS3(__NR_mkdirat, parent, name, s->value);
	} else if (s->op == STEP_SYMLINK) {
		r = SYS3(__NR_symlinkat, text, parent, name);
	} else {
		r = SYS4(__NR_openat, parent, name,
			 O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, s->value);
		if (r >= 0) {
			long fd = r;

			r = 0;
			if (s->attr < (u64)m->fd_count)
				r = copy_to(fd, m->fds[s->attr]);
			SYS1(__NR_close, fd);
		}
	}
	SYS1(__NR_close, parent);
	if (r == -EEXIST && (s->flags & STEP_EXIST_OK))
		r = 0;
	return r;
}

/* pivot_root(".", ".") stacks the old root over the new one, where it is taken off at once
 * (pivot_root(2), NOTES). The kernel moves the root and working directory of every process that
 * stood at the old root, so the one that waits inside MountRootFS returns into the new tree. */
static long step_pivot(const struct step *s)
{
	long r = SYS1(__NR_fchdir, base_fd(s->src));

	if (r >= 0)
		r = SYS2(__NR_pivot_root, ".", ".");
	if (r >= 0)
		r = SYS2(__NR_umount2, ".", 2 /* MNT_DETACH */);
	if (r >= 0)
		r = SYS1(__NR_chdir, "/");
	return r;
}

static long store(const struct step *s, long fd)
{
	if (fd < 0)
		return fd;
	if (s->dst >= REGISTER_COUNT) {
		SYS1(__NR_close, fd);
		return -EINVAL;
	}
	if (registers[s->dst] >= 0)
		SYS1(__NR_close, registers[s->dst]);
	registers[s->dst] = (int)fd;
	return 0;
}

static long run_step(const struct step *s, const char *a, const char *b, const struct message *m)
{
	switch (s->op) {
	case STEP_FUSE:
		return store(s, step_fuse(s, a));
	case STEP_NEW:
		return store(s, new_mount(a, b, 0, s->attr));
	case STEP_CLONE:
		return store(s, step_clone(s, a));
	case STEP_ATTACH:
		return step_attach(s, a);
	case STEP_MKDIR:
	case STEP_SYMLINK:
	case STEP_FILE:
		return step_make(s, a, b, m);
	case STEP_CLOSE:
		if (s->src < REGISTER_COUNT && registers[s->src] >= 0) {
			SYS1(__NR_close, registers[s->src]);
			registers[s->src] = -1;
		}
		return 0;
	case STEP_PIVOT:
		return step_pivot(s);
	case STEP_HOSTNAME:
		return SYS2(__NR_sethostname, a, text_len(a));
	case STEP_SETATTR:
		return set_attributes(base_fd(s->src), s->attr);
	}
	return -EINVAL;
}

static int is_missing(long r)
{
	return r == -ENOENT || r == -ENOTDIR || r == -ELOOP;
}

/* Takes a half-built root off "/" again. Its descriptor is the mount itself. */
static void take_off(int root)
{
	if (root < 0)
		return;
	if (SYS1(__NR_fchdir, root) >= 0)
		SYS2(__NR_umount2, ".", 2 /* MNT_DETACH */);
	SYS1(__NR_chdir, "/");
}

void run_plan(const struct message *m)
{
	struct header h;
	long at = 0, r = 0;
	u32 number = 0;
	int root = -1;

	if (!registers_ready)
		for (int i = 0; i < REGISTER_COUNT; i++)
			registers[i] = -1;
	registers_ready = 1;
	for (; at + (long)sizeof(struct step) <= m->body_len; number++) {
		const struct step *s = (const struct step *)(m->body + at);
		const char *a = (const char *)(s + 1), *b = a + s->a_len;

		if (s->total < sizeof(*s) + s->a_len + s->b_len || s->total > m->body_len - at ||
		    (s->a_len && a[s->a_len - 1]) || (s->b_len && b[s->b_len - 1])) {
			r = -EBADMSG;
			break;
		}
		r = run_step(s, s->a_len ? a : 0, s->b_len ? b : 0, m);
		if (r < 0 && (s->flags & STEP_OPTIONAL) && is_missing(r))
			r = 0;
		if (r < 0)
			break;
		if (s->op == STEP_ATTACH && s->dst == REGISTER_NONE)
			root = (int)base_fd(s->src);
		if (s->op == STEP_PIVOT)
			root = -1;
		at += s->total;
	}
	if (r < 0)
		take_off(root);
	for (int i = 0; i < REGISTER_COUNT; i++) {
		if (registers[i] >= 0)
			SYS1(__NR_close, registers[i]);
		registers[i] = -1;
	}
	memset(&h, 0, sizeof(h));
	h.op = OP_DONE;
	h.result = (s32)(r < 0 ? r : 0);
	h.serial = number;
	send(&h, -1);
}
