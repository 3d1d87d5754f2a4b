/* SPDX-License-Identifier: Apache-2.0 */
/* The process ids of what is ours inside.
 *
 * Leaders, errands and the witness have the ids of the inner root, so to the kernel they are as good
 * as its own: it may limit, slow and reschedule them. What tells them apart is their number. Process
 * ids below 300 the kernel gives to nobody once a pid namespace has come past them (RESERVED_PIDS,
 * kernel/pid.c), unless they are asked for (clone(2), set_tid, Linux 5.5), which takes a capability
 * that no program has. So ours are there, and the filter refuses calls that name such a number.
 *
 * A number stays taken while a process is in the session that it names. So leaders, whose sessions
 * programs can keep alive, have numbers apart from those of the others. */
#include <linux/sched.h>

#include "common.h"

static const struct {
	int first, last;
} numbers[] = {
	[NUMBER_ERRAND] = {2, 80},
	[NUMBER_WITNESS] = {81, 89},
	[NUMBER_LEADER] = {90, LAST_NUMBER},
};

/* fork(2) into a number of that kind; -EAGAIN if all are taken. */
long fork_numbered(int kind)
{
	struct clone_args args;
	int number;

	for (int i = numbers[kind].first; i <= numbers[kind].last; i++) {
		long pid;

		number = i;
		memset(&args, 0, sizeof(args));
		args.exit_signal = SIG_CHLD;
		args.set_tid = (u64)&number;
		args.set_tid_size = 1;
		pid = SYS2(NR_CLONE3, &args, sizeof(args));
		if (pid != -EEXIST)
			return pid;
	}
	return -EAGAIN;
}

/* Let the next process, and so every program, have a number behind ours. */
long pass_numbers(void)
{
	char text[12];
	int status;
	long pid;

	/* Without CONFIG_CHECKPOINT_RESTORE there is no such file; then we come past them one by one. */
	if (write_text("/proc/sys/kernel/ns_last_pid", decimal(LAST_NUMBER + 1, text)) >= 0)
		return 0;
	do {
		pid = SYS5(__NR_clone, SIG_CHLD, 0, 0, 0, 0);
		if (pid < 0)
			return pid;
		if (pid == 0)
			SYS1(__NR_exit_group, 0);
		SYS4(__NR_wait4, pid, &status, 0, 0);
	} while (pid <= LAST_NUMBER);
	return 0;
}
