#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SQLite: a write-ahead log (a mapping that two processes share), a roll-back, an index, a reader beside it.
. /app/lib.sh
db=/root/work.db
rm -f $db*
check journal wal "$(sqlite3 $db 'PRAGMA journal_mode=wal')"
sqlite3 $db "CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO t SELECT i, hex(randomblob(16)) FROM n; CREATE INDEX words ON t(word);"
(for _ in 1 2 3 4 5; do sqlite3 -cmd '.timeout 60000' $db "INSERT INTO t(word) VALUES ('beside')"; done) &
for _ in 1 2 3 4 5; do sqlite3 -cmd '.timeout 60000' $db "INSERT INTO t(word) VALUES ('beside')"; done
wait
sqlite3 $db "BEGIN; DELETE FROM t; ROLLBACK;"
check rows 20010 "$(sqlite3 $db 'SELECT count(*) FROM t')"
check indexed 10 "$(sqlite3 $db "SELECT count(*) FROM t WHERE word = 'beside'")"
check journal delete "$(sqlite3 $db 'PRAGMA journal_mode=delete')"
sqlite3 $db VACUUM
check integrity ok "$(sqlite3 $db 'PRAGMA integrity_check')"
