#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# gcc: files compiled beside each other, an archive, a program that is linked and run; the same bytes twice.
. /app/lib.sh
rm -rf /root/work && mkdir /root/work && cd /root/work
for n in 1 2 3 4 5 6; do
    printf '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint f%d(int n) { return n < 2 ? n : f%d(n - 1) + f%d(n - 2); }\n' $n $n $n >f$n.c
    gcc -O2 -c f$n.c &
done
wait
# By its path: the shell is busybox, which has an ar of its own.
/usr/bin/ar rc libf.a f1.o f2.o f3.o f4.o f5.o f6.o
printf '#include <stdio.h>\nint f1(int); int f6(int);\nint main(void) { printf("%%d\\n", f1(20) + f6(10)); }\n' >main.c
gcc -O2 -o main main.c -L. -lf
check result 6820 "$(./main)"
cp f3.o before.o
gcc -O2 -c f3.c
cmp f3.o before.o
