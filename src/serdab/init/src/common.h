/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the launcher share: strings, messages, and who calls whom. */
#ifndef SERDAB_COMMON_H
#define SERDAB_COMMON_H

#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>

#include "arch.h"
#include "protocol.h"

#define CONTROL_FD 3
#define MAX_FDS 16
#define MESSAGE_BYTES 65536
#define SIGNAL_SET_BYTES 8
#define SIG_KILL 9
#define SIG_HUP 1
#define SIG_INT 2
#define SIG_QUIT 3
#define SIG_TERM 15
#define SIG_CHLD 17
#define SIG_CONT 18
#define SIG_TSTP 20
#define SI_KERNEL_ 0x80
#define TIOCSPGRP_ 0x5410
#define PROGRAM_SLOTS 4096

/* Of the processes that are ours; libos/filter.py has it too. */
#define LAST_NUMBER 299

#define NR_CLONE3 435
#define NR_MOUNT_SETATTR 442
#define NR_OPENAT2 437
#define NR_LANDLOCK_CREATE_RULESET 444
#define NR_LANDLOCK_RESTRICT_SELF 446

struct signal_info {
	int number, error, code;
	int rest[29];
};

struct message {
	struct header *header;
	const u8 *body;
	long body_len;
	int fds[MAX_FDS];
	int fd_count;
};

/* messages.c */
void *memcpy(void *dst, const void *src, u64 n);
void *memset(void *dst, int c, u64 n);
u64 text_len(const char *s);
long receive(struct message *m);
long send(const struct header *h, int fd);
void die(const char *text, long error);

/* steps.c */
long open_fuse(u32 count);
void run_plan(const struct message *m);
const char *decimal(int value, char text[12]);
long new_mount(const char *type, const char *options, const char *fd_text, u64 attr);

/* launcher.c */
long write_text(const char *path, const char *text);

/* numbers.c */
enum { NUMBER_ERRAND, NUMBER_WITNESS, NUMBER_LEADER };
long fork_numbered(int kind);
long pass_numbers(void);

/* worker.c */
__attribute__((noreturn)) void work(void);

/* sessions.c */
struct follower {
	volatile int pid; /* of the program below a leader, 0 once it was reaped */
	volatile int status, is_over;
};
struct follower *follower_of(int slot);
long lead(const struct message *m, struct follower *follower);
void open_terminal(const struct header *h);

/* programs.c */
extern struct setup given;
void keep_setup(const struct message *m);
void spawn(const struct message *m, const u64 *inherited_mask);
void reap(void);
void kill_program(const struct header *h);
int group_of(u32 serial);

/* lending.c */
void lend(struct message *m);
void answer_whose(void);
int take_back(const struct header *h);
int witness_changed(int pid, int status);

/* sync.c */
void sync_mounts(const struct message *m);

/* errands.c */
long errand_begin(u32 op, u32 serial);
void errand_answer(u32 op, u32 serial, long result, int fd);
int errand_changed(int pid, int status);

#endif
