#!/bin/bash
# Started inside, from the root FS that was generated elsewhere.
set -e
echo "hello from a root FS that was generated elsewhere"
words=(sealed verified booted)
echo "${words[@]} in ${#words[@]} steps"
cat /etc/generated
[ -d /proc/self ] && echo "proc is there"
