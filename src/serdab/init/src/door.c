/* SPDX-License-Identifier: Apache-2.0 */
/* The command itself, up to where an interpreter runs.
 *
 * What an interpreter does before the first line of ours cannot be had otherwise: Ctrl-C makes it
 * show a traceback, a directory as standard input makes it end, and SIGPIPE and SIGXFSZ are ignored
 * whatever they were before. So SIGINT is held back here, a directory is put aside, and what was
 * found is told in one variable of the environment, which cli/door.py takes away again:
 *
 *     SERDAB_DOOR=PXI D NAME
 *
 * P, X: SIGPIPE and SIGXFSZ, I: SIGINT; 'i' ignored, 'd' default, 'b' (SIGINT alone) held back before.
 * D: the descriptor of the directory, or '-'. NAME: the last component of what we were called by.
 *
 * Called by the name "door" it executes its arguments. By any other it executes the script
 * "serdab-main" beside itself, whose first line the installer has made to name the interpreter.
 *
 * Exit status: 126 that cannot be executed, 127 there is none. */
#include <asm/stat.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>

#include "arch.h"

#define NAME_BYTES 256
#define PATH_BYTES 4096
#define SIG_INT 2
#define SIG_PIPE 13
#define SIG_XFSZ 25
#define SIG_BLOCK_ 0
#define SIG_IGNORED 1
#define SIGNAL_SET_BYTES 8
#define DIRECTORY_KIND 0040000
#define KIND_MASK 0170000

static const char variable[] = "SERDAB_DOOR=";
static const char script[] = "serdab-main";
static char told[sizeof(variable) + 32 + NAME_BYTES];
static char path[PATH_BYTES + sizeof(script)];

static long length(const char *text)
{
	long n = 0;

	while (text[n])
		n++;
	return n;
}

static char *append(char *end, const char *text)
{
	while (*text)
		*end++ = *text++;
	*end = 0;
	return end;
}

static const char *last_component(const char *name)
{
	const char *last = name;

	for (; *name; name++)
		if (*name == '/')
			last = name + 1;
	return last;
}

static int begins_with(const char *text, const char *start)
{
	while (*start)
		if (*text++ != *start++)
			return 0;
	return 1;
}

__attribute__((noreturn)) static void fail(const char *subject, const char *why, int status)
{
	static const char begin[] = "serdab: error: ";

	SYS3(__NR_write, 2, begin, sizeof(begin) - 1);
	SYS3(__NR_write, 2, subject, length(subject));
	SYS3(__NR_write, 2, why, length(why));
	SYS1(__NR_exit_group, status);
	__builtin_unreachable();
}

static char disposition(int number)
{
	struct {
		long handler, flags, restorer, mask;
	} now = {0, 0, 0, 0};

	SYS4(__NR_rt_sigaction, number, 0, &now, SIGNAL_SET_BYTES);
	return now.handler == SIG_IGNORED ? 'i' : 'd';
}

static char hold_back_interrupts(void)
{
	const unsigned long wanted = 1ul << (SIG_INT - 1);
	unsigned long before = 0;

	SYS4(__NR_rt_sigprocmask, SIG_BLOCK_, &wanted, &before, SIGNAL_SET_BYTES);
	return before & wanted ? 'b' : disposition(SIG_INT);
}

/* Returns the descriptor of a directory that was standard input; /dev/null is there now. */
static long put_directory_aside(void)
{
	struct stat status;
	long aside;

	if (SYS2(__NR_fstat, 0, &status) < 0 || (status.st_mode & KIND_MASK) != DIRECTORY_KIND)
		return -1;
	aside = SYS3(__NR_fcntl, 0, F_DUPFD, 3);
	if (aside < 0)
		return -1; /* no descriptor is left: the interpreter says what it says */
	SYS1(__NR_close, 0);
	SYS4(__NR_openat, AT_FDCWD, "/dev/null", O_RDONLY, 0);
	return aside;
}

static void tell(const char *name)
{
	char digits[12], *end = append(told, variable);
	int n = 0;
	long aside;

	*end++ = disposition(SIG_PIPE);
	*end++ = disposition(SIG_XFSZ);
	*end++ = hold_back_interrupts();
	*end++ = ' ';
	aside = put_directory_aside();
	if (aside < 0)
		*end++ = '-';
	for (; aside > 0 && n < (int)sizeof(digits); aside /= 10)
		digits[n++] = (char)('0' + aside % 10);
	while (n > 0)
		*end++ = digits[--n];
	*end++ = ' ';
	for (n = 0; name[n] && n < NAME_BYTES - 1; n++)
		*end++ = name[n];
	*end = 0;
}

static void find_script(void)
{
	long n = SYS4(__NR_readlinkat, AT_FDCWD, "/proc/self/exe", path, PATH_BYTES);

	if (n < 0 || n >= PATH_BYTES)
		fail("/proc/self/exe", ": it does not tell where this program lies\n", 126);
	while (n > 0 && path[n - 1] != '/')
		n--;
	append(path + n, script);
}

__attribute__((used, noreturn)) static void door_main(long *stack)
{
	long count = stack[0], r;
	char **argv = (char **)(stack + 1), **env = argv + count + 1, **kept = env;
	const char *name = count > 0 ? last_component(argv[0]) : "serdab";
	int executes_arguments = begins_with(name, "door") && !name[4];
	const char *target = path;

	if (count < 1 + executes_arguments)
		fail("door", ": no program\n", 127);
	tell(name);
	if (executes_arguments)
		target = argv[1];
	else {
		find_script();
		argv[0] = path;
	}
	for (char **each = env; *each; each++)
		if (!begins_with(*each, variable))
			*kept++ = *each;
	/* Behind it lies the auxiliary vector, which nobody reads here. */
	*kept++ = told;
	*kept = 0;
	r = SYS3(__NR_execve, target, argv + executes_arguments, env);
	if (r == -ENOENT)
		fail(target, ": not found: it, or the interpreter that it names\n", 127);
	fail(target, ": it cannot be executed\n", 126);
}

START(door_main);
