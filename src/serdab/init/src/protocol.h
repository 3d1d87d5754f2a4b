/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel process and the launcher say to each other, over one SOCK_SEQPACKET socket.
 *
 * libos/launcher.py holds the same layouts as struct.Struct. Little-endian, naturally aligned,
 * no implicit padding. One datagram is one message: a header, then what `op` says. Descriptors
 * travel beside it (SCM_RIGHTS). Both ends ship together, so there is no version to negotiate. */
#ifndef SERDAB_PROTOCOL_H
#define SERDAB_PROTOCOL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long u64;

struct header {
	u16 op;
	u16 flags;
	u32 serial;
	s32 result; /* -errno in answers; a signal number in OP_KILL */
	u32 value;
};

/* kernel process to launcher */
enum {
	OP_SETUP = 1, /* struct setup, limits, filter: once, after the id maps were written */
	OP_PLAN = 2,  /* struct step ...: build and switch mounts */
	OP_SPAWN = 3, /* flags: SPAWN_*; value: umask; descriptors: strings, stdin, stdout, stderr,
		       * status pipe; result: which of the three is the terminal */
	OP_KILL = 4,  /* flags: KILL_*; serial 0: every process of the instance */
	OP_SYNC = 5,  /* write back dirty pages; descriptor: pid 1's mountinfo */
	OP_TERMINAL = 6, /* a new pseudo-terminal */
	OP_LEND = 7,     /* the caller's terminal (descriptor) to program `serial`, which goes on */
	OP_WHOSE = 8,    /* has a group inside the terminal that was lent? */
	OP_LEAVE = 9,    /* the caller's session, for good */
};

/* launcher to kernel process */
enum {
	OP_STARTED = 64, /* value: pid 1's process id outside, result: -errno */
	OP_READY = 65,   /* answer to OP_SETUP; value: FEATURE_*; serial: how far it came */
	OP_FUSE = 66,    /* descriptor: a mounted /dev/fuse; serial: its index; value: device number */
	OP_DONE = 67,    /* answer to OP_PLAN; serial: the step that failed */
	OP_SPAWNED = 68, /* answer to OP_SPAWN; value: process id inside */
	OP_LISTENER = 69, /* descriptor: the seccomp listener of program `serial` */
	OP_EXITED = 70,  /* program `serial` ended; value: wait status; flags: LENT_* */
	OP_SYNCED = 71,  /* answer to OP_SYNC */
	OP_TERMINAL_OPEN = 72, /* answer to OP_TERMINAL; descriptor: the master side */
	OP_STOPPED = 73, /* program `serial` was stopped; value: the signal; flags: LENT_* */
	OP_KILLED = 74,  /* answer to OP_KILL with KILL_TELL; result: -ESRCH if nobody is left */
	OP_WHOSE_IS = 75, /* answer to OP_WHOSE; value: 1 if so */
};

#define SPAWN_TERMINAL 1u /* a session of its own, with a terminal in control */

#define KILL_GROUP 1u /* the program's process group */
#define KILL_TELL 2u

#define LENT_IS_HERE 1u /* a group inside has the terminal */
#define LENT_HUP 2u     /* what the terminal sent to the group that had it */
#define LENT_INT 4u
#define LENT_QUIT 8u
#define LENT_TSTP 16u

/* kernel process to worker; one worker serves one mount(2) or umount2(2) */
enum {
	OP_RESOLVE = 16,    /* value: WORK_*; descriptors: user namespace, mount namespace, root, working
			     * directory; then the target's path */
	OP_MOUNT = 17,      /* value: MOUNT_ATTR_*; then type and options: mount at the target */
	OP_UNDO = 18,       /* take off what OP_MOUNT mounted */
	OP_WRITE_BACK = 19, /* dirty pages of the target's file system */
	OP_DETACH = 20,     /* take off the mount whose root the target is */
};

/* worker to kernel process */
enum {
	/* result 0: serial is the mount's id, flags WORK_IS_*, value the owner as the instance's user
	 * namespace has it; descriptor: the target (O_PATH). Else: serial WORK_AT_* */
	OP_RESOLVED = 80,
	OP_MOUNTED = 81,  /* serial: the mount's id, value: device number; descriptor: /dev/fuse, or
			   * the root of what needs none */
	OP_WRITTEN = 82,
	OP_DETACHED = 83, /* answer to OP_UNDO and OP_DETACH */
};

#define WORK_NOFOLLOW 1u
#define WORK_FUSE 2u /* open /dev/fuse: OP_MOUNT will mount it */
#define WORK_DROP_GROUPS 4u

#define WORK_IS_ROOT 1u /* the root of the caller or of the instance */
#define WORK_IS_MOUNT 2u
#define WORK_NO_LINKS 4u
#define WORK_IN_TREE 8u

#define WORK_AT_ENTER 1u
#define WORK_AT_TARGET 2u

#define FEATURE_LANDLOCK_SCOPE 1u
#define FEATURE_IPC_BOUND 2u /* shm_pages holds */

struct setup {
	u64 capabilities; /* what programs get: bounding, permitted and effective set */
	u32 fuse_count;   /* how many /dev/fuse to open */
	u32 limit_count;
	u32 filter_count; /* instructions of 8 bytes each */
	u32 drop_groups;  /* 0 where setgroups(2) is denied (one-id maps) */
	u32 own_network;  /* a network namespace with nothing but a loopback device */
	u32 shm_pages;    /* of System V shared memory, and few message queues; 0: as the kernel has it */
	u32 own_session;  /* not the caller's: none of its terminals is lent */
	u32 pad;
	/* struct limit limits[limit_count]; struct sock_filter filter[filter_count]; */
};

struct limit {
	u32 resource;
	u32 pad;
	u64 soft;
	u64 hard;
};

enum {
	STEP_FUSE = 1,     /* dst = a new FUSE mount; value: index, a: options, attr: MOUNT_ATTR_* */
	STEP_NEW = 2,      /* dst = a new mount of type a, options b */
	STEP_CLONE = 3,    /* dst = clone of what is at a under src */
	STEP_ATTACH = 4,   /* mount src at a under dst */
	STEP_MKDIR = 5,    /* a under src, mode value */
	STEP_SYMLINK = 6,  /* a under src -> b */
	STEP_FILE = 7,     /* a under src, mode value, content: received descriptor number attr */
	STEP_CLOSE = 8,    /* src */
	STEP_PIVOT = 9,    /* src, attached over /, becomes the root of everyone; the old one goes */
	STEP_HOSTNAME = 10, /* a */
	STEP_SETATTR = 11, /* src: set attr */
};

#define STEP_OPTIONAL 1u /* a missing object (ENOENT, ENOTDIR, ELOOP) skips this step */
#define STEP_EXIST_OK 2u

#define REGISTER_COUNT 8   /* they are empty again after a plan */
#define REGISTER_NONE 255u /* the launcher's own root */

struct step {
	u8 op;
	u8 dst;
	u8 src;
	u8 flags;
	u32 value;
	u64 attr;
	u16 a_len; /* with the closing NUL; 0: none */
	u16 b_len;
	u32 total; /* of this step with its strings, a multiple of 8 */
	/* char a[a_len], b[b_len]; */
};

/* What a child writes to its status pipe when it did not become the program. */
struct spawn_failure {
	s32 error;
	u32 stage;
};

enum {
	SPAWN_SETUP = 1,
	SPAWN_CHDIR = 2,
	SPAWN_EXEC = 3,
	SPAWN_FILTER = 4,
};

#endif
