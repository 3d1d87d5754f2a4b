/* SPDX-License-Identifier: Apache-2.0 */
/* Children of pid 1 that do one thing which may take long, and answer for it. Programs may kill
 * and stop them, so pid 1 answers for one that ended without having done so, and lets go on. */
#include "common.h"

#define ERRANDS 64

static struct {
	int pid;
	u32 op;
	u32 serial;
} errands[ERRANDS];

void errand_answer(u32 op, u32 serial, long result, int fd)
{
	struct header h;

	memset(&h, 0, sizeof(h));
	h.op = op;
	h.serial = serial;
	h.result = (s32)(result < 0 ? result : 0);
	send(&h, fd);
}

/* Returns 0 in the child, which answers and exits with 0, and the child's pid or -errno in pid 1. */
long errand_begin(u32 op, u32 serial)
{
	int slot = 0;
	long pid = -EAGAIN;

	while (slot < ERRANDS && errands[slot].pid)
		slot++;
	if (slot < ERRANDS)
		pid = fork_numbered(NUMBER_ERRAND);
	if (pid > 0) {
		errands[slot].pid = (int)pid;
		errands[slot].op = op;
		errands[slot].serial = serial;
	}
	return pid;
}

/* Returns whether it was such a child. */
int errand_changed(int pid, int status)
{
	for (int i = 0; i < ERRANDS; i++) {
		if (!pid || errands[i].pid != pid)
			continue;
		if ((status & 0xff) == 0x7f) {
			SYS2(__NR_kill, pid, SIG_CONT);
			return 1;
		}
		errands[i].pid = 0;
		if (status)
			errand_answer(errands[i].op, errands[i].serial, -EIO, -1);
		return 1;
	}
	return 0;
}
