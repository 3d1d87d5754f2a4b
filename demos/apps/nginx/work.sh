#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# nginx: two workers, sendfile from the sealed root, a proxy to itself, a new configuration, an orderly end.
. /app/lib.sh
rm -rf /root/site && mkdir /root/site
seq 200000 >/root/site/numbers
# The network may be the host's: a port that is free there.
for port in $(seq 18080 18180); do
    sed "s/PORT/$port/" /etc/nginx/nginx.conf >/root/nginx.conf
    nginx -c /root/nginx.conf 2>/root/said &
    server=$!
    until_true "nginx listens or ends" sh -c "grep -q 'in use' /root/said || wget -q -O /dev/null http://127.0.0.1:$port/numbers"
    grep -q 'in use' /root/said || break
    wait $server || true
done
expected=$(sha256sum </root/site/numbers)
check sent "$expected" "$(wget -q -O - "http://127.0.0.1:$port/numbers" | sha256sum)"
check proxied "$expected" "$(wget -q -O - "http://127.0.0.1:$port/again/numbers" | sha256sum)"
echo new >/root/site/new
kill -HUP $server
check new new "$(wget -q -O - "http://127.0.0.1:$port/new")"
kill -QUIT $server
wait $server
