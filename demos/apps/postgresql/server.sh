#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PostgreSQL: made, worked on, killed with all its processes, recovered; where the disk is small, also
# refused when it is full, and well again when there is room.
. /app/lib.sh
# Locales are looked for with a program that is not there, and said so.
export PATH="/app/bin:$PATH" PGDATA=/data/base PGHOST=/data HOME=/data
initdb -A trust -E UTF8 --locale=C.UTF-8 --wal-segsize=1 >/data/initdb.log
cat >>$PGDATA/postgresql.conf <<'CONF'
listen_addresses = ''
unix_socket_directories = '/data'
shared_buffers = 16MB
max_wal_size = 16MB
min_wal_size = 2MB
CONF
begin() { pg_ctl -s -w -t 120 -l /data/log start; }
ask() { psql -XAtq -c "$1" postgres; }
begin
pgbench -i -q -s 1 postgres 2>/data/pgbench.log
pgbench -n -c 4 -j 2 -t 50 postgres >>/data/pgbench.log 2>&1
check transactions 200 "$(ask 'SELECT count(*) FROM pgbench_history')"
ask "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n"
# All of them at once, as if the machine had failed.
for process in /proc/[0-9]*; do
    grep -qs '^Name:.postgres' "$process/status" || continue
    kill -9 "${process#/proc/}" 2>/dev/null || true # it has ended with its parent
done
is_over() { ! grep -qs '^Name:.postgres' /proc/[0-9]*/status; }
until_true "the end" is_over
begin
check kept 500500 "$(ask 'SELECT sum(n) FROM kept')"
check balance t "$(ask 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)')"
if [ "$(df -kP /data | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)" -lt 1000000 ]; then
    dd if=/dev/zero of=/data/fill bs=1M 2>/dev/null && exit 1
    if refused=$(ask "CREATE TABLE more AS SELECT generate_series(1, 2000000) AS n" 2>&1); then
        echo "a full disk took it" >&2
        exit 1
    fi
    case $refused in
    *"No space left"* | *"closed the connection"*) echo "full disk: refused" ;;
    *) echo "full disk: $refused" >&2 && exit 1 ;;
    esac
    rm /data/fill
    # Without room for its log it ends by itself, on any file system; or it lives on.
    pg_ctl -s -w -m immediate stop || true
    until_true "the end" is_over
    begin
    check "kept on a full disk" 500500 "$(ask 'SELECT sum(n) FROM kept')"
    ask "CREATE TABLE more AS SELECT generate_series(1, 1000) AS n"
    check "room again" 1000 "$(ask 'SELECT count(*) FROM more')"
fi
pg_ctl -s -w -m fast stop
