/* SPDX-License-Identifier: Apache-2.0 */
/* The independent checker of the kill tests: it knows nothing of Serdab.
 *
 *     recorder run DIR       verify, say "have N", then write record N+1, N+2, ... for ever;
 *                            each is acknowledged ("ack N") once the system said it is durable
 *     recorder verify DIR    verify, say "have N"
 *     recorder linger DIR    write 40 records, leave children behind that go on writing, end
 *
 * For each number n, in this order and by one process:
 *     slots         4 KiB at slot n mod 64 are overwritten in place, not synced
 *     head          n mod 8 == 0: written beside, renamed over, the directory synced
 *     r<n mod 4>.g  record n is appended (g = n / 512), and made durable in one of six ways
 * A child makes unsynced noise in DIR/noise meanwhile. What a crash leaves must be a moment of that
 * history: records 1..N without a hole, the slot and the head that go with N, nothing torn, every
 * noise file whole. The first difference is printed and ends the program with status 3.
 *
 * One write(2) is no single event: Linux hands it to a FUSE server in pieces where the first page
 * is not in the cache. So the beginning of record N+1, which nobody acknowledged, may be there; it
 * is cut off before the next record is written. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILES 4
#define PER_GENERATION 512
#define SLOTS 64
#define SLOT_BYTES 4096
#define HEAD_EVERY 8
#define NOISE_FILES 24
#define LONGEST (160 << 10)

struct header {
	char magic[4];
	uint32_t length; /* of what follows the header */
	uint64_t number;
	uint64_t sum; /* over number, length and what follows */
};

static uint8_t buffer[sizeof(struct header) + LONGEST];
static uint8_t expected[sizeof(struct header) + LONGEST];
static int top, slots;
static struct {
	uint64_t number; /* 0: no record begins without ending */
	char name[40];
	long offset;
} begun;

__attribute__((noreturn, format(printf, 2, 3))) static void give_up(int status, const char *format,
								    ...)
{
	char line[400];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	line[length++] = '\n';
	if (write(1, line, (size_t)length) < 0)
		status = 9;
	_exit(status);
}

__attribute__((noreturn)) static void failed(const char *what)
{
	give_up(5, "error %d %s: %s", errno, what, strerror(errno));
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t checksum(const struct header *h, const uint8_t *content)
{
	uint64_t sum = 14695981039346656037u;
	const uint64_t mixed[2] = {h->number, h->length};

	for (size_t i = 0; i < sizeof(mixed); i++)
		sum = (sum ^ ((const uint8_t *)mixed)[i]) * 1099511628211u;
	for (size_t i = 0; i < h->length; i++)
		sum = (sum ^ content[i]) * 1099511628211u;
	return sum;
}

static size_t length_of(uint64_t number)
{
	uint64_t state = number * 0x9e3779b97f4a7c15u | 1;

	next_random(&state);
	if (number % 61 == 0)
		return LONGEST - next_random(&state) % 4096;
	return next_random(&state) % (number % 7 ? 3000 : 20000);
}

static size_t make(uint8_t *at, uint64_t number, size_t length)
{
	struct header h = {{'R', 'E', 'C', '1'}, (uint32_t)length, number, 0};
	uint64_t state = number * 0xd1342543de82ef95u | 1;
	uint8_t *content = at + sizeof(h);

	for (size_t i = 0; i < length; i += 8) {
		uint64_t word = next_random(&state);

		memcpy(content + i, &word, length - i < 8 ? length - i : 8);
	}
	h.sum = checksum(&h, content);
	memcpy(at, &h, sizeof(h));
	return sizeof(h) + length;
}

static int is_whole(const uint8_t *raw, size_t size)
{
	struct header h;

	if (size < sizeof(h))
		return 0;
	memcpy(&h, raw, sizeof(h));
	return !memcmp(h.magic, "REC1", 4) && sizeof(h) + h.length <= size &&
	       checksum(&h, raw + sizeof(h)) == h.sum;
}

static uint64_t number_of(const uint8_t *raw)
{
	struct header h;

	memcpy(&h, raw, sizeof(h));
	return h.number;
}

static void record_name(char *name, uint64_t number)
{
	sprintf(name, "r%llu.%llu", (unsigned long long)(number % FILES),
		(unsigned long long)(number / PER_GENERATION));
}

static void write_all(int fd, const uint8_t *raw, size_t size, long offset, const char *what)
{
	ssize_t n = offset < 0 ? write(fd, raw, size) : pwrite(fd, raw, size, offset);

	if (n < 0)
		failed(what);
	if ((size_t)n != size)
		give_up(5, "error 0 %s: %zd of %zu bytes were written", what, n, size);
}

/* Verifying ------------------------------------------------------------------------------ */

static uint64_t newest_generation(void)
{
	uint64_t newest = 0;
	int fd = openat(top, ".", O_RDONLY | O_DIRECTORY);
	DIR *directory = fd < 0 ? 0 : fdopendir(fd);
	struct dirent *entry;
	unsigned long long file, generation;

	if (!directory)
		failed("opendir");
	while ((errno = 0, entry = readdir(directory))) {
		if (sscanf(entry->d_name, "r%llu.%llu", &file, &generation) == 2 &&
		    generation > newest)
			newest = generation;
	}
	if (errno)
		failed("readdir");
	closedir(directory);
	return newest;
}

/* Reads the records of one file one after the other; 0 at its end. */
static int verify_record(int fd, const char *name, uint64_t number, long *offset)
{
	size_t size = sizeof(struct header) + length_of(number);
	ssize_t got = pread(fd, buffer, size, *offset);

	if (got < 0)
		failed(name);
	if (got == 0)
		return 0;
	make(expected, number, length_of(number));
	if ((size_t)got < size && !memcmp(buffer, expected, (size_t)got) && !begun.number) {
		begun.number = number;
		begun.offset = *offset;
		strcpy(begun.name, name);
		return 0;
	}
	if ((size_t)got != size || !is_whole(buffer, size) || memcmp(buffer, expected, size))
		give_up(3, "torn: record %llu in %s at %ld, %zd of %zu bytes",
			(unsigned long long)number, name, *offset, got, size);
	*offset += (long)size;
	return 1;
}

static uint64_t verify_generation(uint64_t generation)
{
	uint64_t first = generation * PER_GENERATION, end = first + PER_GENERATION, last = 0;
	uint64_t count = 0;

	if (first == 0)
		first = 1;
	for (unsigned file = 0; file < FILES; file++) {
		uint64_t number = first;
		long offset = 0;
		char name[40];
		int fd;

		while (number % FILES != file)
			number++;
		record_name(name, number);
		fd = openat(top, name, O_RDONLY);
		if (fd < 0 && errno == ENOENT)
			continue;
		if (fd < 0)
			failed(name);
		for (; number < end && verify_record(fd, name, number, &offset); number += FILES) {
			count++;
			if (number > last)
				last = number;
		}
		if (number >= end && pread(fd, buffer, 1, offset) != 0)
			give_up(3, "torn: %s goes on after its last record", name);
		close(fd);
	}
	if (count && count != last - first + 1)
		give_up(3, "hole: generation %llu has %llu records, the last is %llu",
			(unsigned long long)generation, (unsigned long long)count,
			(unsigned long long)last);
	return last;
}

static void verify_slots(uint64_t last)
{
	for (uint64_t i = 0; i < SLOTS && last + 1 > i; i++) {
		uint64_t newest = last + 1 - i, number;
		ssize_t got = pread(slots, buffer, SLOT_BYTES, (long)(newest % SLOTS * SLOT_BYTES));

		if (got < 0)
			failed("slots");
		if (newest == last + 1 && (got == 0 || !number_of(buffer)))
			continue; /* the one of the record that was under way: not there yet */
		if (got != SLOT_BYTES || !is_whole(buffer, SLOT_BYTES))
			give_up(3, "torn: slot %llu, %zd bytes", (unsigned long long)(newest % SLOTS),
				got);
		number = number_of(buffer);
		if (number != newest && !(newest == last + 1 && number + SLOTS == newest))
			give_up(3, "slot %llu holds %llu, but the last record is %llu",
				(unsigned long long)(newest % SLOTS), (unsigned long long)number,
				(unsigned long long)last);
	}
}

static void verify_head(uint64_t last)
{
	uint64_t wanted = last - last % HEAD_EVERY, number = 0;
	int fd = openat(top, "head", O_RDONLY);

	if (fd >= 0) {
		ssize_t got = read(fd, buffer, sizeof(buffer));

		if (got < 0)
			failed("head");
		if (!is_whole(buffer, (size_t)got))
			give_up(3, "torn: head, %zd bytes", got);
		number = number_of(buffer);
		close(fd);
	} else if (errno != ENOENT) {
		failed("head");
	}
	if (number != wanted && !(number == last + 1 && number % HEAD_EVERY == 0))
		give_up(3, "head is %llu, but the last record is %llu", (unsigned long long)number,
			(unsigned long long)last);
}

static void verify_noise(void)
{
	int fd = openat(top, "noise", O_RDONLY | O_DIRECTORY);
	DIR *directory;
	struct dirent *entry;

	if (fd < 0 && errno == ENOENT)
		return;
	directory = fd < 0 ? 0 : fdopendir(fd);
	if (!directory)
		failed("noise");
	while ((errno = 0, entry = readdir(directory))) {
		ssize_t got;
		int file;

		if (entry->d_name[0] != 'n')
			continue;
		file = openat(fd, entry->d_name, O_RDONLY);
		if (file < 0)
			failed(entry->d_name);
		got = read(file, buffer, sizeof(buffer));
		if (got < 0)
			failed(entry->d_name);
		if (!is_whole(buffer, (size_t)got))
			give_up(3, "torn: noise/%s, %zd bytes", entry->d_name, got);
		close(file);
	}
	if (errno)
		failed("noise");
	closedir(directory);
}

static uint64_t verify(void)
{
	uint64_t newest = newest_generation(), last = 0;

	/* Older generations are being removed; two are whole, or the first ones are. */
	for (uint64_t generation = newest ? newest - 1 : 0; generation <= newest; generation++) {
		uint64_t found = verify_generation(generation);

		if (generation < newest && found + 1 != (generation + 1) * PER_GENERATION)
			give_up(3, "hole: generation %llu ends with %llu",
				(unsigned long long)generation, (unsigned long long)found);
		if (found > last)
			last = found;
	}
	if (begun.number && begun.number != last + 1)
		give_up(3, "torn: record %llu in %s at %ld, but the last record is %llu",
			(unsigned long long)begun.number, begun.name, begun.offset,
			(unsigned long long)last);
	verify_slots(last);
	verify_head(last);
	verify_noise();
	printf("have %llu\n", (unsigned long long)last);
	fflush(stdout);
	return last;
}

/* Writing -------------------------------------------------------------------------------- */

static void replace_head(uint64_t number)
{
	size_t size = make(buffer, number, length_of(number + 3));
	int fd = openat(top, "head.new", O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (fd < 0)
		failed("head.new");
	write_all(fd, buffer, size, -1, "head.new");
	if (close(fd) < 0 || renameat(top, "head.new", top, "head") < 0)
		failed("head");
	if (fsync(top) < 0)
		failed("fsync of a directory");
}

static void append(uint64_t number)
{
	unsigned way = number / 5 % 6;
	int flags = way == 0 ? O_SYNC : way == 1 ? O_DSYNC : 0;
	size_t size = make(buffer, number, length_of(number));
	char name[40];
	int fd;
	long r = 0;

	record_name(name, number);
	fd = openat(top, name, O_WRONLY | O_CREAT | O_APPEND | flags, 0644);
	if (fd < 0)
		failed(name);
	write_all(fd, buffer, size, -1, name);
	if (way == 2)
		r = fdatasync(fd);
	else if (way == 3)
		r = syncfs(fd);
	else if (way == 4)
		/* The C library's sync() has no result, but a disk that is gone must not count. */
		r = syscall(SYS_sync);
	else if (way == 5)
		r = fsync(fd);
	if (r < 0)
		failed("making a record durable");
	if (close(fd) < 0)
		failed("close");
}

static void remove_generation(uint64_t generation)
{
	for (uint64_t file = 0; file < FILES; file++) {
		char name[40];

		record_name(name, generation * PER_GENERATION + file);
		if (unlinkat(top, name, 0) < 0 && errno != ENOENT)
			failed(name);
	}
}

static void write_record(uint64_t number)
{
	char line[40];
	int length;

	make(buffer, number, SLOT_BYTES - sizeof(struct header));
	write_all(slots, buffer, SLOT_BYTES, (long)(number % SLOTS * SLOT_BYTES), "slots");
	if (number % HEAD_EVERY == 0)
		replace_head(number);
	append(number);
	length = sprintf(line, "ack %llu\n", (unsigned long long)number);
	if (write(1, line, (size_t)length) != length)
		_exit(9);
	if (number % PER_GENERATION == 0 && number / PER_GENERATION >= 3)
		remove_generation(number / PER_GENERATION - 3);
}

static void cut_begun(void)
{
	int fd = begun.number ? openat(top, begun.name, O_WRONLY) : -1;

	if (begun.number && (fd < 0 || ftruncate(fd, begun.offset) < 0 || close(fd) < 0))
		failed(begun.name);
}

/* Ends with an error of the system, quietly: the writer of records tells it. */
static void make_noise(unsigned salt)
{
	uint64_t state = (uint64_t)getpid() * 2654435761u + salt + 1;
	int noise = openat(top, "noise", O_RDONLY | O_DIRECTORY);
	char name[40], other[40];

	while (noise >= 0) {
		uint64_t pick = next_random(&state);
		size_t size = make(buffer, pick, pick % (pick % 5 ? 9000 : LONGEST));
		int fd, r;

		sprintf(name, "t%d", (int)getpid());
		fd = openat(noise, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		if (fd < 0)
			return;
		for (size_t at = 0; at < size; at += 6000)
			if (write(fd, buffer + at, size - at < 6000 ? size - at : 6000) < 0)
				return;
		close(fd);
		sprintf(other, "n%llu", (unsigned long long)(next_random(&state) % NOISE_FILES));
		r = renameat(noise, name, noise, other);
		sprintf(other, "n%llu", (unsigned long long)(next_random(&state) % NOISE_FILES));
		if (pick % 3 == 0)
			r = unlinkat(noise, other, 0);
		if (pick % 4 == 0) {
			r = mkdirat(noise, "d", 0700);
			r = symlinkat(other, noise, "d/link");
			r = unlinkat(noise, "d/link", 0);
			r = unlinkat(noise, "d", AT_REMOVEDIR);
		}
		if (r < 0 && errno != ENOENT && errno != EEXIST && errno != ENOTEMPTY)
			return;
		usleep(3000);
	}
}

static void start_noise(unsigned salt)
{
	int pid;

	if (mkdirat(top, "noise", 0755) < 0 && errno != EEXIST)
		failed("noise");
	pid = fork();
	if (pid < 0)
		failed("fork");
	if (pid == 0) {
		make_noise(salt);
		_exit(0);
	}
}

int main(int argc, char **argv)
{
	uint64_t last;

	if (argc != 3)
		give_up(2, "usage: recorder run|verify|linger DIR");
	if (mkdir(argv[2], 0755) < 0 && errno != EEXIST)
		failed(argv[2]);
	top = open(argv[2], O_RDONLY | O_DIRECTORY);
	slots = top < 0 ? -1 : openat(top, "slots", O_RDWR | O_CREAT, 0644);
	if (slots < 0)
		failed("slots");
	last = verify();
	if (!strcmp(argv[1], "verify"))
		return 0;
	cut_begun();
	start_noise(1);
	if (!strcmp(argv[1], "linger")) {
		start_noise(2);
		for (int i = 0; i < 40; i++)
			write_record(++last);
		return 0;
	}
	for (;;)
		write_record(++last);
}
