# SPDX-License-Identifier: Apache-2.0
# What work-outs have in common: the first check that fails ends them.
set -eu
export PATH=/bin:/usr/bin:/usr/sbin HOME=/root LC_ALL=C

check() { # check WHAT EXPECTED FOUND
    [ "$2" = "$3" ] || { echo "$1: expected $2, found $3" >&2; exit 1; }
    echo "$1: $3"
}

until_true() { # until_true WHAT COMMAND...: for as long as a loaded machine may need
    what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || { echo "never: $what" >&2; "$@" >&2; exit 1; }
        sleep 0.05
    done
}
