/* SPDX-License-Identifier: Apache-2.0 */
/* A ledger in SQLite, for the kill tests; it knows nothing of Serdab.
 *
 *     ledger JOURNAL run DIR      check, say "have N", then commit entry N+1, N+2, ... for ever;
 *                                 each is acknowledged ("ack N") once COMMIT has returned
 *     ledger JOURNAL verify DIR   check, say "have N"
 *
 * JOURNAL is wal, delete, truncate or persist. Each transaction appends an entry, moves the balance
 * of one of 16 accounts, and from time to time drops old entries; the check wants `PRAGMA
 * integrity_check` to be ok, the entries to be without a hole and whole, and the balances to agree
 * with the number of the last one. SQLite is declared here, not included: its header need not be
 * installed where its library is. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;
int sqlite3_open(const char *, sqlite3 **);
int sqlite3_exec(sqlite3 *, const char *, int (*)(void *, int, char **, char **), void *, char **);
int sqlite3_prepare_v2(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
int sqlite3_step(sqlite3_stmt *);
int sqlite3_reset(sqlite3_stmt *);
int sqlite3_finalize(sqlite3_stmt *);
int sqlite3_bind_int64(sqlite3_stmt *, int, long long);
int sqlite3_bind_blob(sqlite3_stmt *, int, const void *, int, void (*)(void *));
long long sqlite3_column_int64(sqlite3_stmt *, int);
int sqlite3_column_bytes(sqlite3_stmt *, int);
const void *sqlite3_column_blob(sqlite3_stmt *, int);
const unsigned char *sqlite3_column_text(sqlite3_stmt *, int);
const char *sqlite3_errmsg(sqlite3 *);
int sqlite3_system_errno(sqlite3 *);
int sqlite3_busy_timeout(sqlite3 *, int);

#define ROW 100
#define DONE 101
#define ACCOUNTS 16
#define KEPT 600
#define LONGEST 9000

static sqlite3 *db;

__attribute__((noreturn)) static void say_and_end(int status, const char *word, const char *text,
						  long long a, long long b)
{
	printf("%s %d %s: %lld, %lld\n", word, sqlite3_system_errno(db), text, a, b);
	fflush(stdout);
	_exit(status);
}

__attribute__((noreturn)) static void failed(const char *what)
{
	printf("error %d %s: %s\n", sqlite3_system_errno(db), what, sqlite3_errmsg(db));
	fflush(stdout);
	_exit(5);
}

static void execute(const char *sql)
{
	if (sqlite3_exec(db, sql, 0, 0, 0) != 0)
		failed(sql);
}

static sqlite3_stmt *prepare(const char *sql)
{
	sqlite3_stmt *statement;

	if (sqlite3_prepare_v2(db, sql, -1, &statement, 0) != 0)
		failed(sql);
	return statement;
}

static int entry(uint8_t *at, uint64_t number)
{
	uint64_t state = number * 0x9e3779b97f4a7c15u | 1;
	int length = (int)(number * 2654435761u % (number % 9 ? 400 : LONGEST));

	for (int i = 0; i < length; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		at[i] = (uint8_t)state;
	}
	return length;
}

static long long check(void)
{
	static uint8_t expected[LONGEST];
	sqlite3_stmt *statement = prepare("PRAGMA integrity_check");
	long long last = 0, sum = 0;

	if (sqlite3_step(statement) != ROW)
		failed("integrity_check");
	if (strcmp((const char *)sqlite3_column_text(statement, 0), "ok")) {
		printf("damaged: %s\n", sqlite3_column_text(statement, 0));
		fflush(stdout);
		_exit(3);
	}
	sqlite3_finalize(statement);
	statement = prepare("SELECT number, body FROM entries ORDER BY number");
	int step;

	while ((step = sqlite3_step(statement)) == ROW) {
		long long number = sqlite3_column_int64(statement, 0);
		int length = entry(expected, (uint64_t)number);

		if (last && number != last + 1)
			say_and_end(3, "hole", "entries", last, number);
		if (sqlite3_column_bytes(statement, 1) != length ||
		    (length && memcmp(sqlite3_column_blob(statement, 1), expected, (size_t)length)))
			say_and_end(3, "torn", "an entry", number, length);
		last = number;
	}
	if (step != DONE)
		failed("reading entries");
	sqlite3_finalize(statement);
	statement = prepare("SELECT sum(balance) FROM accounts");
	if (sqlite3_step(statement) != ROW)
		failed("reading accounts");
	sum = sqlite3_column_int64(statement, 0);
	if (sum != last)
		say_and_end(3, "torn", "balances", sum, last);
	sqlite3_finalize(statement);
	printf("have %lld\n", last);
	fflush(stdout);
	return last;
}

static void step_once(sqlite3_stmt *statement, long long number, const char *what)
{
	sqlite3_bind_int64(statement, 1, number);
	if (sqlite3_step(statement) != DONE)
		failed(what);
	sqlite3_reset(statement);
}

static void write_entries(long long number, const char *place)
{
	struct statvfs status;
	static uint8_t body[LONGEST];
	sqlite3_stmt *append = prepare("INSERT INTO entries VALUES (?1, ?2)");
	sqlite3_stmt *move =
	    prepare("UPDATE accounts SET balance = balance + 1 WHERE number = ?1 % 16");
	sqlite3_stmt *drop = prepare("DELETE FROM entries WHERE number <= ?1");

	for (;; number++) {
		execute("BEGIN IMMEDIATE");
		sqlite3_bind_blob(append, 2, body, entry(body, (uint64_t)number), 0);
		step_once(append, number, "INSERT");
		step_once(move, number, "UPDATE");
		if (number % 100 == 0)
			step_once(drop, number - KEPT, "DELETE");
		execute("COMMIT");
		/* A directory that cannot be opened SQLite takes for one that needs no sync, so with a
		 * disk that died between the removal of the journal and its sync COMMIT succeeds. */
		if (statvfs(place, &status) < 0) {
			printf("error %d after COMMIT\n", errno);
			fflush(stdout);
			_exit(5);
		}
		printf("ack %lld\n", number);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	char text[300];
	long long last;

	if (argc != 4)
		return 2;
	mkdir(argv[3], 0755);
	snprintf(text, sizeof(text), "%s/ledger.%s", argv[3], argv[1]);
	if (sqlite3_open(text, &db) != 0)
		failed("open");
	sqlite3_busy_timeout(db, 20000);
	snprintf(text, sizeof(text), "PRAGMA journal_mode=%s", argv[1]);
	execute(text);
	/* FULL, the default, does not sync the directory after the journal was removed, and so gives
	 * the last commit up to a power cut (https://sqlite.org/pragma.html#pragma_synchronous). */
	execute("PRAGMA synchronous=EXTRA");
	execute("PRAGMA wal_autocheckpoint=40");
	execute("CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, body BLOB)");
	execute("BEGIN IMMEDIATE");
	execute("CREATE TABLE IF NOT EXISTS accounts (number INTEGER PRIMARY KEY, balance INTEGER)");
	for (int i = 0; i < ACCOUNTS; i++) {
		snprintf(text, sizeof(text), "INSERT OR IGNORE INTO accounts VALUES (%d, 0)", i);
		execute(text);
	}
	execute("COMMIT");
	last = check();
	if (!strcmp(argv[2], "run"))
		write_entries(last + 1, argv[3]);
	return 0;
}
