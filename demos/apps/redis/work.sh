#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# redis: a log that is flushed with each command, killed, and read again; a snapshot by a forked child.
. /app/lib.sh
rm -rf /root/work && mkdir /root/work
cli() { redis-cli -s /root/work/socket "$@"; }
begin() {
    redis-server --port 0 --unixsocket /root/work/socket --dir /root/work --appendonly yes \
        --appendfsync always --save '' >/root/work/log &
    server=$!
    until_true "redis answers" cli ping
}
begin
check set OK "$(cli set word one)"
redis-benchmark -s /root/work/socket -n 1000 -c 8 -P 8 -q -t incr,lpush >/dev/null
count=$(cli get counter:__rand_int__)
kill -9 $server
wait $server || true
begin
check word one "$(cli get word)"
check counter "$count" "$(cli get counter:__rand_int__)"
check list 1000 "$(cli llen mylist)"
check rewritten "Background append only file rewriting started" "$(cli bgrewriteaof)"
check snapshot OK "$(cli save)"
cli shutdown nosave || true
wait $server
