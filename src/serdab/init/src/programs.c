/* SPDX-License-Identifier: Apache-2.0 */
/* Starts programs, takes note of their end, passes signals on.
 *
 * Security: between fork and exec a program's process gives up, in this order, its limits,
 * capabilities and free choice of system calls. Its seccomp listener goes to the kernel process,
 * which is its only holder afterwards (the descriptor is close-on-exec here). */
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/seccomp.h>
#include <linux/stat.h>

#include "common.h"

#define FILTER_MAX 4096
#define LIMIT_SLOTS 16
#define FD_NEEDED 5
#define MAP_PRIVATE_ 2
#define MAP_ANONYMOUS_ 0x20
#define PROT_RW 3
#define WAIT_NOHANG_UNTRACED 3

struct sock_filter_ {
	u16 code;
	u8 jt, jf;
	u32 k;
};

struct sock_fprog_ {
	u16 len;
	u16 pad[3];
	struct sock_filter_ *filter;
};

struct setup given;
static struct limit limits[LIMIT_SLOTS];
static struct sock_filter_ filter[FILTER_MAX];

static struct {
	u32 serial;
	int pid;                   /* of the program, or of the leader above it */
	struct follower *follower; /* the program, if it has a leader */
} programs[PROGRAM_SLOTS];

void keep_setup(const struct message *m)
{
	const u8 *p = m->body;

	if (m->body_len < (long)sizeof(given))
		die("launcher: short setup\n", 0);
	memcpy(&given, p, sizeof(given));
	if (given.limit_count > LIMIT_SLOTS || given.filter_count > FILTER_MAX ||
	    m->body_len != (long)(sizeof(given) + given.limit_count * sizeof(struct limit) +
				  given.filter_count * sizeof(struct sock_filter_)))
		die("launcher: bad setup\n", 0);
	p += sizeof(given);
	memcpy(limits, p, given.limit_count * sizeof(struct limit));
	p += given.limit_count * sizeof(struct limit);
	memcpy(filter, p, given.filter_count * sizeof(struct sock_filter_));
}

static long limit_capabilities(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[2];
	long r = SYS5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);

	if (r < 0)
		return r;
	for (u32 cap = 0; cap < 64; cap++) {
		if (given.capabilities >> cap & 1)
			continue;
		r = SYS5(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
		if (r == -EINVAL) /* beyond the kernel's last one */
			break;
		if (r < 0)
			return r;
	}
	for (int i = 0; i < 2; i++) {
		sets[i].effective = (u32)(given.capabilities >> (32 * i));
		sets[i].permitted = sets[i].effective;
		sets[i].inheritable = 0;
	}
	return SYS2(__NR_capset, &head, sets);
}

static long install_filter(u32 serial)
{
	struct sock_fprog_ program = {(u16)given.filter_count, {0}, filter};
	struct header h;
	long fd, r;

	/* WAIT_KILLABLE_RECV: once the kernel process has read a call, only a deadly signal ends
	 * it; otherwise every signal would make the caller repeat it (seccomp_unotify(2)). */
	fd = SYS3(__NR_seccomp, SECCOMP_SET_MODE_FILTER,
		  SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
	if (fd < 0)
		return fd;
	memset(&h, 0, sizeof(h));
	h.op = OP_LISTENER;
	h.serial = serial;
	r = send(&h, (int)fd);
	SYS1(__NR_close, fd);
	return r;
}

__attribute__((noreturn)) static void give_up(int status_fd, long error, u32 stage)
{
	struct spawn_failure f = {(s32)-error, stage};

	SYS3(__NR_write, status_fd, &f, sizeof(f));
	SYS1(__NR_exit_group, 127);
	__builtin_unreachable();
}

/* strings: u32 argc, u32 envc, then path, cwd, argv..., envp..., each ended by NUL. */
static long load_strings(int fd, char **path, char **cwd, char ***argv, char ***envp)
{
	long size = SYS3(__NR_lseek, fd, 0, 2);
	char *base, *p;
	char **table;
	u64 count;

	if (size < 12)
		return size < 0 ? size : -EBADMSG;
	base = (char *)SYS6(__NR_mmap, 0, size + 1, PROT_RW, MAP_PRIVATE_, fd, 0);
	if ((long)base < 0 && (long)base > -4096)
		return (long)base;
	count = (u64)((u32 *)base)[0] + ((u32 *)base)[1] + 2;
	table = (char **)SYS6(__NR_mmap, 0, count * sizeof(char *), PROT_RW,
			      MAP_PRIVATE_ | MAP_ANONYMOUS_, -1, 0);
	if ((long)table < 0 && (long)table > -4096)
		return (long)table;
	p = base + 8;
	*path = p;
	p += text_len(p) + 1;
	*cwd = p;
	p += text_len(p) + 1;
	*argv = table;
	*envp = table + ((u32 *)base)[0] + 1;
	for (u32 i = 0; i < ((u32 *)base)[0] + ((u32 *)base)[1]; i++) {
		if (p >= base + size)
			return -EBADMSG;
		*(i < ((u32 *)base)[0] ? table + i : table + i + 1) = p;
		p += text_len(p) + 1;
	}
	return 0;
}

__attribute__((noreturn)) static void become(const struct message *m, const u64 *mask,
						   struct follower *follower)
{
	static const u64 none;
	char *path, *cwd, **argv, **envp;
	int status = m->fds[4];
	long r;

	if (follower)
		r = lead(m, follower);
	else
		r = SYS2(__NR_setpgid, 0, 0);
	if (r < 0)
		give_up(status, r, SPAWN_SETUP);
	for (int i = 0; i < 3; i++)
		if ((r = SYS3(__NR_dup3, m->fds[1 + i], i, 0)) < 0)
			give_up(status, r, SPAWN_SETUP);
	if ((r = load_strings(m->fds[0], &path, &cwd, &argv, &envp)) < 0)
		give_up(status, r, SPAWN_SETUP);
	SYS1(__NR_umask, m->header->value);
	if ((r = SYS1(__NR_chdir, cwd)) < 0)
		give_up(status, r, SPAWN_CHDIR);
	for (u32 i = 0; i < given.limit_count; i++) {
		u64 pair[2] = {limits[i].soft, limits[i].hard};

		if ((r = SYS4(__NR_prlimit64, 0, limits[i].resource, pair, 0)) < 0)
			give_up(status, r, SPAWN_SETUP);
	}
	if ((r = limit_capabilities()) < 0)
		give_up(status, r, SPAWN_SETUP);
	if ((r = install_filter(m->header->serial)) < 0)
		give_up(status, r, SPAWN_FILTER);
	SYS3(__NR_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC);
	SYS4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, mask ? mask : &none, 0, SIGNAL_SET_BYTES);
	r = SYS3(__NR_execve, path, argv, envp);
	give_up(status, r, SPAWN_EXEC);
}

void spawn(const struct message *m, const u64 *inherited_mask)
{
	struct header h;
	struct follower *follower = 0;
	long pid = -EAGAIN;
	int slot = 0;

	while (slot < PROGRAM_SLOTS && programs[slot].pid)
		slot++;
	if (slot < PROGRAM_SLOTS && m->header->flags & SPAWN_TERMINAL) {
		follower = follower_of(slot);
		if (follower)
			memset(follower, 0, sizeof(*follower));
		else
			slot = PROGRAM_SLOTS;
	}
	if (m->fd_count != FD_NEEDED || (follower && (u32)m->header->result > 2))
		pid = -EBADMSG;
	else if (slot < PROGRAM_SLOTS)
		pid = follower ? fork_numbered(NUMBER_LEADER)
			       : SYS5(__NR_clone, SIG_CHLD, 0, 0, 0, 0);
	if (pid == 0)
		become(m, inherited_mask, follower);
	if (pid > 0) {
		programs[slot].serial = m->header->serial;
		programs[slot].pid = (int)pid;
		programs[slot].follower = follower;
	}
	memset(&h, 0, sizeof(h));
	h.op = OP_SPAWNED;
	h.serial = m->header->serial;
	h.result = (s32)(pid < 0 ? pid : 0);
	h.value = (u32)(pid < 0 ? 0 : pid);
	send(&h, -1);
}

/* Everything without a parent inside comes here too; only what was started by us is told. Some of
 * it only once the witness has said what the terminal sent. */
void reap(void)
{
	struct header h;
	int status;
	long pid;

	while ((pid = SYS4(__NR_wait4, -1, &status, WAIT_NOHANG_UNTRACED, 0)) > 0) {
		int is_stop = (status & 0xff) == 0x7f;

		if (witness_changed((int)pid, status) || errand_changed((int)pid, status))
			continue;
		for (int i = 0; i < PROGRAM_SLOTS; i++) {
			struct follower *follower = programs[i].follower;

			if (programs[i].pid != (int)pid)
				continue;
			if (is_stop && follower) {
				/* The leader was, by a program: nobody would hear of its own any more. */
				SYS2(__NR_kill, pid, SIG_CONT);
				break;
			}
			memset(&h, 0, sizeof(h));
			h.op = is_stop ? OP_STOPPED : OP_EXITED;
			h.serial = programs[i].serial;
			h.value = is_stop ? (u32)status >> 8 & 0xff : (u32)status;
			if (follower && follower->is_over)
				h.value = (u32)follower->status;
			if (!is_stop)
				programs[i].pid = 0;
			if (!take_back(&h))
				send(&h, -1);
			break;
		}
	}
}

/* Of a program that runs, in the session of all; 0 if there is none. */
int group_of(u32 serial)
{
	for (int i = 0; i < PROGRAM_SLOTS; i++)
		if (programs[i].pid && programs[i].serial == serial && !programs[i].follower)
			return programs[i].pid;
	return 0;
}

/* A program that ended but was not reaped still owns its process id, so this never hits another.
 * Below a leader it may be reaped between the look and the call; its id is then as fresh as any and
 * not given out again before all others were. */
void kill_program(const struct header *req)
{
	struct header h;
	long r = 0;
	int pid;

	if (req->serial == 0)
		r = SYS2(__NR_kill, -1, req->result);
	for (int i = 0; i < PROGRAM_SLOTS && req->serial; i++) {
		if (!programs[i].pid || programs[i].serial != req->serial)
			continue;
		pid = programs[i].follower ? programs[i].follower->pid : programs[i].pid;
		if (pid)
			SYS2(__NR_kill, req->flags & KILL_GROUP ? -pid : pid, req->result);
	}
	if (!(req->flags & KILL_TELL))
		return;
	memset(&h, 0, sizeof(h));
	h.op = OP_KILLED;
	h.serial = req->serial;
	h.result = (s32)(r < 0 ? r : 0);
	send(&h, -1);
}
