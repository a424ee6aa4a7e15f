"""The system calls that a program in the sandbox may make, as a filter for the kernel.

What is not listed is refused: sockets, further processes, signals to others, tracing, mounts,
namespaces, shared memory, io_uring and whatever a later kernel adds. Numbers differ from machine to
machine; elsewhere than on x86-64 and AArch64 there is no filter.
"""

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Of each machine: what the kernel calls it, and its column in the tables below."""

_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -,
pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232,
madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -,
setitimer 38 103, getpid 39 172, sendfile 40 71, sendto 44 206, recvfrom 45 207, sendmsg 46 211,
recvmsg 47 212, shutdown 48 210, getsockname 51 204, getpeername 52 205, setsockopt 54 208,
getsockopt 55 209, exit 60 93, wait4 61 260, uname 63 160, flock 73 32, fsync 74 82,
fdatasync 75 83, ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50,
rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -, unlink 87 -, symlink 88 -,
readlink 89 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, setrlimit 160 164,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175,
getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, getresuid 118 148,
getresgid 120 150, getpgid 121 155, getsid 124 156, capget 125 90, rt_sigpending 127 136,
rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, statfs 137 43, fstatfs 138 44,
getpriority 140 141, sched_getparam 143 121, sched_getscheduler 145 120,
sched_get_priority_max 146 125, sched_get_priority_min 147 126, sched_rr_get_interval 148 127,
gettid 186 178, readahead 187 213, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10,
listxattr 194 11, llistxattr 195 12, flistxattr 196 13, time 201 -, futex 202 98,
sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61, set_tid_address 218 96,
restart_syscall 219 128, fadvise64 221 223, timer_create 222 107, timer_settime 223 110,
timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -,
epoll_ctl 233 21, waitid 247 95, openat 257 56, mkdirat 258 34, newfstatat 262 79, unlinkat 263 35,
renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78, faccessat 269 48,
pselect6 270 72, ppoll 271 73, set_robust_list 273 99, epoll_pwait 281 22, signalfd 282 -,
timerfd_create 283 85, eventfd 284 -, fallocate 285 47, timerfd_settime 286 86,
timerfd_gettime 287 87, signalfd4 289 74, eventfd2 290 19, epoll_create1 291 20, dup3 292 24,
pipe2 293 59, preadv 295 69, pwritev 296 70, getcpu 309 168, renameat2 316 276, getrandom 318 278,
membarrier 324 283, copy_file_range 326 285, preadv2 327 286, pwritev2 328 287, statx 332 291,
rseq 334 293, close_range 436 436, openat2 437 437, faccessat2 439 439, epoll_pwait2 441 441,
futex_waitv 449 449, futex_wake 454 454, futex_wait 455 455, futex_requeue 456 456
"""

_ATTRIBUTES = """
truncate 76 45, chmod 90 -, fchmod 91 52, chown 92 -, fchown 93 55, lchown 94 -, utime 132 -,
utimes 235 -, futimesat 261 -, fchmodat 268 53, fchmodat2 452 452, fchownat 260 54, utimensat 280 88
"""
"""Change files that only a read-only file system protects: Landlock knows nothing of owners,
modes and times, and older ones nothing of ``truncate``."""

_WITH_ARGUMENTS: dict[str, Mapping[int, Sequence[int]]] = {
    # Of terminals, blocking and inheritance; not who gets signals, or attributes of files.
    "ioctl 16 29": {1: (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)},
    # Copies, flags and locks of descriptors; not who gets signals.
    "fcntl 72 25": {1: (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)},
    "prctl 157 167": {0: (15, 16, 0x53564D41)},  # names of threads and of memory
    "prlimit64 302 261": {0: (0,)},  # of this process
    # Streams between the program and itself, which event loops need: they cannot be addressed.
    "socketpair 53 199": {0: (1,), 1: (1, 0x801, 0x80001, 0x80801)},
}
"""Allowed where these arguments have one of these values."""

_CLONE = "clone 56 220"
_CLONE_THREAD = 0x10000
_FIRST_SHARED = 424
"""From here on numbers are the same everywhere. "Not known" has the C library take an older call,
``clone`` for ``clone3``."""

_LOAD, _IS_EQUAL, _IS_ABOVE, _IS_AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_Line = tuple[int, int, int, int]
"""Code, how many lines to leave out if true, how many if false, value."""

_ALLOW: _Line = (_RETURN, 0, 0, 0x7FFF0000)
_REFUSE: _Line = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
_UNKNOWN: _Line = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)


def assemble(machine: str, *, attributes: bool) -> bytes:
    """Return the filter for the kernel; nothing for a machine whose numbers are not known.

    Args:
        machine: What ``os.uname().machine`` says.
        attributes: Whether to let through what changes modes, owners and times of files.
    """
    if machine not in MACHINES:
        return b""
    name, column = MACHINES[machine]
    calls = _ALLOWED + ("," + _ATTRIBUTES if attributes else "")
    lines: list[_Line] = [(_LOAD, 0, 0, 4), (_IS_EQUAL, 1, 0, name), _REFUSE, (_LOAD, 0, 0, 0)]
    for first, last in _ranges(_numbers(calls, column)):
        lines += [(_IS_AT_LEAST, 0, 2, first), (_IS_ABOVE, 1, 0, last), _ALLOW]
    for call, arguments in _WITH_ARGUMENTS.items():
        lines += _only(call, column, [line for item in arguments.items() for line in _any(*item)])
    threads = [_argument(0), (_HAS_BITS, 1, 0, _CLONE_THREAD), _REFUSE]
    lines += _only(_CLONE, column, threads)
    lines += [(_IS_AT_LEAST, 0, 1, _FIRST_SHARED), _UNKNOWN, _REFUSE]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _numbers(calls: str, column: int) -> list[int]:
    numbers = (call.split()[1 + column] for call in calls.split(","))
    return sorted(int(number) for number in numbers if number != "-")


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _only(call: str, column: int, checks: list[_Line]) -> list[_Line]:
    """Return lines that allow a call which passes the checks."""
    (number,) = _numbers(call, column)
    return [(_IS_EQUAL, 0, len(checks) + 1, number), *checks, _ALLOW]


def _any(index: int, values: Sequence[int]) -> list[_Line]:
    """Return lines that refuse if an argument has none of these values."""
    tests = [(_IS_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index), *tests, _REFUSE]


def _argument(index: int) -> _Line:
    """Return the line that loads the lower half of an argument: these are all ints."""
    return (_LOAD, 0, 0, 16 + 8 * index)
