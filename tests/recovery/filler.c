/* SPDX-License-Identifier: Apache-2.0 */
/* Fills a file system and says exactly what it was promised; it knows nothing of Serdab.
 *
 *     filler DIR     obeys the commands on its standard input, one a line, each answered by a line:
 *
 *     verify         check every block that is there      "have BLOCKS"
 *     fill           append blocks to f0, f1, ..., fsync after each four, until a call fails
 *                                                         "full CALL ERRNO BLOCKS"
 *     more N         the same, but N blocks at most       "wrote BLOCKS" or "full CALL ERRNO BLOCKS"
 *     drop           unlink every second file             "dropped FILES"
 *     clear          unlink every file                    "dropped FILES"
 *     free           what statvfs(3) says                 "free KIB"
 *
 * BLOCKS are those that an fsync covered. A file has 64 blocks of 64 KiB; block b of file f depends
 * on both. A file in whose middle something is missing or other is "torn: ...", status 3. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define BLOCK (64 << 10)
#define PER_FILE 64
#define PER_SYNC 4
#define MOST_FILES 4096

static uint8_t block[BLOCK], expected[BLOCK];
static int next_file;
static const char *top;

static void make(uint8_t *at, int file, int number)
{
	uint64_t state = ((uint64_t)file << 20 | (uint64_t)number) * 0x9e3779b97f4a7c15u | 1;

	for (int i = 0; i < BLOCK; i += 8) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		memcpy(at + i, &state, 8);
	}
}

static void say(const char *word, const char *call, long a, long b)
{
	if (call)
		printf("%s %s %ld %ld\n", word, call, a, b);
	else
		printf("%s %ld\n", word, a);
	fflush(stdout);
}

static void name_of(char *name, int file)
{
	sprintf(name, "%.200s/f%d", top, file);
}

static long verify_file(int file)
{
	char name[256];
	ssize_t got;
	int fd, number = 0;

	name_of(name, file);
	fd = open(name, O_RDONLY);
	if (fd < 0)
		return 0;
	while ((got = read(fd, block, BLOCK)) == BLOCK) {
		make(expected, file, number);
		if (memcmp(block, expected, BLOCK)) {
			printf("torn: block %d of f%d\n", number, file);
			exit(3);
		}
		number++;
	}
	/* What follows the last acknowledged block may be there in part, but not other. */
	make(expected, file, number);
	if (got < 0 || memcmp(block, expected, (size_t)got)) {
		printf("torn: the end of f%d, %zd bytes: %s\n", file, got, strerror(errno));
		exit(3);
	}
	close(fd);
	return number;
}

static void verify(void)
{
	long blocks = 0;

	for (int file = 0; file < MOST_FILES; file++) {
		long found = verify_file(file);

		blocks += found;
		if (found)
			next_file = file + 1;
	}
	say("have", 0, blocks, 0);
}

/* Returns the call that failed, or null after so many blocks; `count` are the durable ones. */
static const char *append(long most, long *count)
{
	char name[256];

	*count = 0;
	while (*count < most) {
		int fd, number;

		name_of(name, next_file);
		fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_APPEND, 0644);
		if (fd < 0)
			return "open";
		for (number = 0; number < PER_FILE && *count + number % PER_SYNC < most; number++) {
			ssize_t done;

			make(block, next_file, number);
			done = write(fd, block, BLOCK);
			if (done != BLOCK) {
				errno = done < 0 ? errno : ENOSPC; /* a short write: the disk is full */
				return "write";
			}
			if (number % PER_SYNC == PER_SYNC - 1) {
				if (fsync(fd) < 0)
					return "fsync";
				*count += PER_SYNC;
			}
		}
		if (close(fd) < 0)
			return "close";
		next_file++;
	}
	return 0;
}

static void drop(int step)
{
	char name[256];
	long count = 0;

	for (int file = 0; file < next_file + 1; file += step) {
		name_of(name, file);
		if (unlink(name) == 0)
			count++;
		else if (errno != ENOENT) {
			say("full", "unlink", errno, count);
			return;
		}
	}
	/* New files get new numbers: what was removed must not be taken for lost. */
	next_file++;
	say("dropped", 0, count, 0);
}

int main(int argc, char **argv)
{
	char line[100];
	const char *call;
	long count, most;

	if (argc != 2)
		return 2;
	top = argv[1];
	if (mkdir(top, 0755) < 0 && errno != EEXIST)
		say("full", "mkdir", errno, 0);
	while (fgets(line, sizeof(line), stdin)) {
		most = 1l << 40;
		if (sscanf(line, "more %ld", &most) == 1 || !strcmp(line, "fill\n")) {
			call = append(most, &count);
			if (call) {
				long error = errno;

				next_file++;
				say("full", call, error, count);
			} else {
				say("wrote", 0, count, 0);
			}
		} else if (!strcmp(line, "verify\n")) {
			verify();
		} else if (!strcmp(line, "drop\n")) {
			drop(2);
		} else if (!strcmp(line, "clear\n")) {
			drop(1);
		} else if (!strcmp(line, "free\n")) {
			struct statvfs s;

			if (statvfs(top, &s) < 0)
				say("full", "statvfs", errno, 0);
			else
				say("free", 0, (long)(s.f_bavail * s.f_frsize >> 10), 0);
		} else {
			return 2;
		}
	}
	return 0;
}
