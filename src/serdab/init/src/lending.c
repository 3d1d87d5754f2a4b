/* SPDX-License-Identifier: Apache-2.0 */
/* The caller's terminal, lent to one of the programs.
 *
 * Programs have process groups of their own, so the terminal's foreground job is the caller's until
 * a program needs the terminal and is stopped for that (SIGTTIN, SIGTTOU). Then its group gets it,
 * until the program stops or ends. What is typed meanwhile (Ctrl-C) reaches that group alone; the
 * caller's job is to hear of it too, as it would without us, but not of what a program sends to
 * itself. The two can be told apart only by whoever receives the signal. So a *witness* of ours,
 * a process in that group, holds the terminal's signals back and remembers those that the kernel
 * sent. It lives for as long as the terminal is lent; its exit code is what it saw.
 *
 * Security: a program cannot make the kernel the sender of a signal to another process
 * (rt_sigqueueinfo(2)); it may kill the witness, and then the caller hears nothing. */
#include <linux/close_range.h>

#include "common.h"

#define TIOCGPGRP_ 0x540f

static int terminal = -1;
static int witness;
static u32 borrower;
static struct header held; /* what is told when the witness has ended; op 0: nothing */

__attribute__((noreturn)) static void watch(void)
{
	static const u64 awaited = 1ul << (SIG_HUP - 1) | 1ul << (SIG_INT - 1) | 1ul << (SIG_QUIT - 1) |
				   1ul << (SIG_TSTP - 1) | 1ul << (SIG_TERM - 1);
	struct signal_info info;
	int seen = 0;

	SYS3(__NR_close_range, 0, ~0u, 0);
	for (;;) {
		/* Those with lower numbers come first, so SIGTERM does not hide what was before. */
		long r = SYS4(__NR_rt_sigtimedwait, &awaited, &info, 0, SIGNAL_SET_BYTES);

		if (r == SIG_TERM)
			SYS1(__NR_exit_group, seen);
		if (r <= 0 || info.code != SI_KERNEL_)
			continue;
		seen |= r == SIG_HUP    ? LENT_HUP
			: r == SIG_INT  ? LENT_INT
			: r == SIG_QUIT ? LENT_QUIT
					: LENT_TSTP;
	}
}

static void end_lending(void)
{
	if (terminal >= 0)
		SYS1(__NR_close, terminal);
	terminal = -1;
	if (!witness)
		return;
	SYS2(__NR_kill, witness, SIG_TERM);
}

static void tell_held(void)
{
	if (held.op)
		send(&held, -1);
	held.op = 0;
}

static int is_here(void)
{
	int group = 0;

	/* Of a group that is not in our pid namespace the number is 0. */
	return terminal >= 0 && SYS3(__NR_ioctl, terminal, TIOCGPGRP_, &group) >= 0 && group > 0;
}

void lend(struct message *m)
{
	int group = group_of(m->header->serial);
	long pid;

	if (m->fd_count != 1 || !group)
		return;
	end_lending();
	tell_held(); /* of another program, without what a witness may know */
	/* Without a witness, because there may be no more processes, all else is as it was. */
	pid = fork_numbered(NUMBER_WITNESS);
	if (pid == 0) {
		SYS2(__NR_setpgid, 0, group);
		watch();
	}
	witness = pid > 0 ? (int)pid : 0;
	if (witness)
		SYS2(__NR_setpgid, witness, group);
	terminal = m->fds[0];
	m->fd_count = 0;
	borrower = m->header->serial;
	SYS3(__NR_ioctl, terminal, TIOCSPGRP_, &group);
	SYS2(__NR_kill, -group, SIG_CONT);
}

/* Returns whether it is told here, or later by witness_changed(). */
int take_back(const struct header *h)
{
	if (held.op && held.serial == h->serial) { /* it ended before its stop was told */
		held.op = h->op;
		held.value = h->value;
		return 1;
	}
	if (terminal < 0 || borrower != h->serial)
		return 0;
	held = *h;
	held.flags = is_here() ? LENT_IS_HERE : 0;
	end_lending();
	if (!witness)
		tell_held();
	return 1;
}

/* Returns whether it is the witness whose status this is. One that was stopped ends without a
 * word, or a program could keep us from telling of another's end. */
int witness_changed(int pid, int status)
{
	if (!witness || pid != witness)
		return 0;
	if ((status & 0xff) == 0x7f) {
		SYS2(__NR_kill, witness, SIG_KILL);
		return 1;
	}
	witness = 0;
	if ((status & 0x7f) == 0)
		held.flags |= (u16)(status >> 8 & 0xff);
	tell_held();
	return 1;
}

void answer_whose(void)
{
	struct header h;

	memset(&h, 0, sizeof(h));
	h.op = OP_WHOSE_IS;
	h.value = (u32)is_here();
	send(&h, -1);
}
