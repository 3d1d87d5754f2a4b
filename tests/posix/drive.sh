#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# drive.sh SUITE WHERE DIR: runs a suite that lies at WHERE in the directory DIR, on the host as in an
# instance. It says a line for each test: "ok NAME", "not ok NAME - why", "skip NAME - why". pjdfstest
# speaks for itself, below a line "# FILE NAME" for each of its scripts.
set -u
suite=$1 where=$2
mkdir -p "$3" && cd "$3" || exit 1
said=${TMPDIR:-/tmp}/said.$$
trap 'rm -f "$said"' EXIT

# attempt NAME COMMAND...: status 0 is ok, 32 is "not here" (LTP's TCONF).
attempt() {
    name=$1
    shift
    timeout -k 5 "${LIMIT_S:-300}" "$@" >"$said" 2>&1 </dev/null
    status=$?
    case $status in
    0) echo "ok $name" ;;
    32) echo "skip $name - $(grep -a TCONF "$said" | tail -n 1)" ;;
    *) echo "not ok $name - exit $status: $(grep -aE 'TFAIL|TBROK|fail|error' "$said" | head -n 1)" ;;
    esac
}

case $suite in
pjdfstest)
    # It asks df(1) for the type, and leaves out what it expects of ext4 alone: we are to be like ext4.
    df_dir=$(mktemp -d)
    trap 'rm -rf "$said" "$df_dir"' EXIT
    printf '#!/bin/sh\necho "name ext4"\n' >"$df_dir/df"
    chmod 755 "$df_dir/df"
    PATH=$df_dir:$PATH
    (cd "$where/tests" && find . -name '*.t') | sort | while read -r script; do
        echo "# FILE ${script#./}"
        sh "$where/tests/$script" 2>/dev/null </dev/null
    done
    ;;
fsx)
    # Fourteen kinds of work: no mappings, alone and together; small and large files and operations;
    # aligned or not; closed and opened often; without each of the ways to make holes.
    number=0
    while read -r options; do
        number=$((number + 1))
        # shellcheck disable=SC2086 # a list of options
        attempt "fsx $options" "$where" -q -S "${SEED:-1}" -N "${ROUNDS:-3000}" $options "fsx-$number"
        rm -f "fsx-$number"*
    done <<'CONFIGURATIONS'
-l 262144
-l 262144 -R
-l 262144 -W
-l 262144 -R -W
-l 16777216 -o 65536
-l 16777216 -o 1048576 -W
-l 65536 -o 512
-l 1048576 -r 4096 -t 4096 -w 4096
-l 1048576 -r 512 -t 512 -w 512 -R -W
-l 262144 -c 20
-l 262144 -c 3 -R -W
-l 262144 -Z -r 4096 -w 4096 -t 4096 -R -W
-l 4194304 -p 100000 -o 300000
-l 33000 -o 33000
CONFIGURATIONS
    ;;
fsstress)
    for seed in 1 2 3 4; do
        mkdir "fsstress-$seed" && attempt "fsstress $seed" \
            "$where" -d "$PWD/fsstress-$seed" -l 1 -n "${ROUNDS:-3000}" -p 2 -s "$seed"
    done
    ;;
ltp)
    # What an installed LTP needs; each program makes a directory of its own below TMPDIR.
    LTPROOT=$where PATH=$PATH:$where/testcases/bin TMPDIR=$PWD
    export LTPROOT PATH TMPDIR
    said=$PWD/said.$$
    for program in "$where"/testcases/bin/*; do
        name=${program##*/}
        case $name in
        # Programs that others start, and those that ask for options.
        *_child | *_helper | *.* | tst_* | *testapp* | fsstress | ftest* | mmapstress* | \
        creat07* | fcntl3[378]*) continue ;;
        *[0-9]) attempt "$name" "$program" ;;
        esac
    done
    ;;
*) echo "drive.sh: no suite $suite" >&2; exit 2 ;;
esac
exit 0 # what failed has been said
