/* SPDX-License-Identifier: Apache-2.0 */
/* Programs that have a terminal of the instance: a session each, with that terminal in control.
 *
 * A program that were the session's leader itself could not be stopped by Ctrl-Z: its process group
 * would be orphaned, and the kernel drops SIGTSTP for those (setpgid(2), "orphaned process group").
 * So a leader of ours stands above it, as a shell does. It does three things: it tells when the
 * program stops, it passes the terminal's hang-up on, and it hands the program's status to pid 1,
 * whose child it is.
 *
 * Security: the leader is pid 1's code and not dumpable, as pid 1 is. It keeps the control socket
 * and lets go of every other descriptor, so that no /dev/fuse has a second holder. */
#include <linux/close_range.h>

#include "common.h"

#define MAP_SHARED_ANONYMOUS 0x21
#define PROT_RW 3
#define WAIT_NOHANG_UNTRACED 3
#define TIOCSCTTY_ 0x540e
#define TIOCSPTLCK_ 0x40045431
#define TIOCGPTN_ 0x80045430
#define O_NOCTTY_ 0400

static struct follower *followers;

/* The followers of all slots lie in memory that leaders share with pid 1. */
struct follower *follower_of(int slot)
{
	if (!followers) {
		long r = SYS6(__NR_mmap, 0, PROGRAM_SLOTS * sizeof(*followers), PROT_RW,
			      MAP_SHARED_ANONYMOUS, -1, 0);

		if (r < 0 && r > -4096)
			return 0;
		followers = (struct follower *)r;
	}
	return followers + slot;
}

static void tell_stopped(u32 serial, int status)
{
	struct header h;

	memset(&h, 0, sizeof(h));
	h.op = OP_STOPPED;
	h.serial = serial;
	h.value = (u32)status >> 8 & 0xff;
	send(&h, -1);
}

__attribute__((noreturn)) static void follow(int pid, u32 serial, struct follower *follower)
{
	static const u64 awaited = 1ul << (SIG_CHLD - 1) | 1ul << (SIG_HUP - 1);
	struct signal_info info;
	int status;

	for (;;) {
		long r = SYS4(__NR_rt_sigtimedwait, &awaited, &info, 0, SIGNAL_SET_BYTES);

		/* Of the terminal's hang-up only the leader hears. What a process sends to all of
		 * the instance the program gets by itself. */
		if (r == SIG_HUP && info.code == SI_KERNEL_) {
			SYS2(__NR_kill, -pid, SIG_HUP);
			SYS2(__NR_kill, -pid, SIG_CONT);
		}
		while ((r = SYS4(__NR_wait4, pid, &status, WAIT_NOHANG_UNTRACED, 0)) > 0) {
			if ((status & 0xff) == 0x7f) {
				tell_stopped(serial, status);
				continue;
			}
			follower->pid = 0;
			follower->status = status;
			follower->is_over = 1;
			SYS1(__NR_exit_group, 0);
		}
	}
}

/* Returns in the program's process; the leader stays here. */
long lead(const struct message *m, struct follower *follower)
{
	int terminal = m->fds[1 + m->header->result];
	int self;
	long pid, r;

	if ((r = SYS0(__NR_setsid)) < 0)
		return r;
	if ((r = SYS3(__NR_ioctl, terminal, TIOCSCTTY_, 0)) < 0)
		return r;
	pid = SYS5(__NR_clone, SIG_CHLD, 0, 0, 0, 0);
	if (pid < 0)
		return pid;
	if (pid == 0) {
		/* Both sides make the group: whoever comes first needs it. SIGTTOU is blocked. */
		SYS2(__NR_setpgid, 0, 0);
		follower->pid = self = (int)SYS0(__NR_getpid);
		return SYS3(__NR_ioctl, terminal, TIOCSPGRP_, &self);
	}
	SYS2(__NR_setpgid, pid, pid);
	SYS3(__NR_close_range, CONTROL_FD + 1, ~0u, 0);
	follow((int)pid, m->header->serial, follower);
}

/* A new pseudo-terminal of the instance's own devpts; the descriptor sent is its master side. In a
 * child: what lies at that path is up to the programs, and pid 1 must not wait for it. */
void open_terminal(const struct header *req)
{
	int unlocked = 0, number;
	long fd, r, pid = errand_begin(OP_TERMINAL_OPEN, req->serial);

	if (pid > 0)
		return;
	if (pid < 0) {
		errand_answer(OP_TERMINAL_OPEN, req->serial, pid, -1);
		return;
	}
	fd = SYS4(__NR_openat, AT_FDCWD, "/dev/pts/ptmx",
		  O_RDWR | O_NOCTTY_ | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
	r = fd < 0 ? fd : SYS3(__NR_ioctl, fd, TIOCGPTN_, &number);
	if (r >= 0)
		r = SYS3(__NR_ioctl, fd, TIOCSPTLCK_, &unlocked);
	errand_answer(OP_TERMINAL_OPEN, req->serial, r, r < 0 ? -1 : (int)fd);
	SYS1(__NR_exit_group, 0);
}
