/* SPDX-License-Identifier: Apache-2.0 */
/* Everything that depends on the processor: how a system call is made, and how a program starts.
 *
 * The programs here are freestanding. A C library would bring start-up code, locales and a few
 * hundred KiB that run inside the sandbox and would have to be trusted for nothing. */
#ifndef SERDAB_ARCH_H
#define SERDAB_ARCH_H

#if defined(__x86_64__)

static inline long syscall6(long n, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* The kernel enters with the stack pointer on argc (System V ABI, process initialization). */
#define START(entry)                                       \
	__asm__(".text\n.global _start\n_start:\n"             \
		"xor %ebp,%ebp\nmov %rsp,%rdi\nand $-16,%rsp\n" \
		"call " #entry "\nhlt\n")

#elif defined(__aarch64__)

static inline long syscall6(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory", "cc");
	return x0;
}

#define START(entry)                                          \
	__asm__(".text\n.global _start\n_start:\n"                \
		"mov x29,#0\nmov x30,#0\nmov x0,sp\nand sp,x0,#-16\n" \
		"bl " #entry "\nbrk #0\n")

#else
#error "no system call sequence for this processor"
#endif

#define SYS0(n) syscall6((n), 0, 0, 0, 0, 0, 0)
#define SYS1(n, a) syscall6((n), (long)(a), 0, 0, 0, 0, 0)
#define SYS2(n, a, b) syscall6((n), (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS3(n, a, b, c) syscall6((n), (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS4(n, a, b, c, d) syscall6((n), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS5(n, a, b, c, d, e) \
	syscall6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define SYS6(n, a, b, c, d, e, f) \
	syscall6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#endif
