"""Linux's seccomp: a decoder gives up, for good, every system call that reading pictures does not take.

A list of what is allowed, not of what is forbidden, for the first is short and known: over 1,300 pictures of every
format, broken, huge and animated ones among them, call the kernel for memory, for threads, and to move the answer. Of
the second nobody knows the end: a signal also goes out by a descriptor's owner, a log is emptied by the descriptor of
stderr, a file opens to others by its name, and each kernel brings new ways.

What is not on the list fails and kills nothing: a library that asks for more goes another way or reads no picture, and
a death stays evidence of a fault. The error is that of a missing right; for calls of 2019 and later that of an older
kernel, on which libc takes the older call: `clone` for `clone3`, whose flags no filter can see.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final

_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2

# How the kernel names the architecture to a filter, and which of the numbers below are its own.
_ARCHITECTURES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_FREE: Final = {
    # memory
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    # threads: AVIF, WebP and HEIF are read by several
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "gettid": (186, 178),
    "exit": (60, 93),
    # time, where the kernel's clock is not to be read without it
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "restart_syscall": (219, 128),  # of one that waited while its process was stopped
    # this process
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "exit_group": (231, 94),
    # the link, the one descriptor that it holds beside those of /dev/null
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "close": (3, 57),
}

_CLONE: Final = (56, 220)
_CLONE_THREAD: Final = 0x0001_0000
_CLONE_NAMESPACES: Final = 0x7E02_0000
_TGKILL: Final = (234, 131)

# The same numbers on every architecture from here on; 424 came with Linux 5.1. x32's lie far above.
_SINCE_2019: Final = 424

_LOAD: Final = 0x20
_AND: Final = 0x54
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # where a filter reads them, the argument's lower half
_ALLOWED: Final = 0x7FFF_0000
_FAILS: Final = 0x0005_0000


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def available() -> bool:
    """Whether this process may give up system calls: on Linux, on an architecture whose calls are known here, where
    neither the kernel nor a container's own filter forbids it."""
    if sys.platform != "linux" or sys.maxsize < 2**32 or platform.machine() not in _ARCHITECTURES:
        return False
    # Without a program there is nothing to install, which is found out after whether one might be.
    return _install(None) == errno.EFAULT


def give_up_the_rest() -> None:
    """This thread and those that it starts call the kernel for what reading a picture takes, where that is `available`.

    They start threads but no process, and send signals to this process only. `PR_SET_NO_NEW_PRIVS` must be set.
    OSError where it is available and the kernel takes no such filter, as where too many steps stand before it.
    """
    if available():
        steps = _steps(*_ARCHITECTURES[platform.machine()])
        if error := _install(_Program(len(steps), b"".join(struct.pack("=HBBI", *step) for step in steps))):
            raise OSError(error, "system calls are not filtered")


def _install(program: _Program | None) -> int:
    """The errno, 0 where it is installed."""
    # Not seccomp(2), which systemd 252 has in no group of calls that a unit allows.
    argument = None if program is None else ctypes.byref(program)
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, argument, 0, 0) == 0 else ctypes.get_errno()


def _steps(architecture: int, column: int) -> list[tuple[int, int, int, int]]:
    """The filter: operation, steps to skip where true, where not, operand."""
    refused = (_RETURN, 0, 0, _FAILS | errno.EPERM)
    allowed = (_RETURN, 0, 0, _ALLOWED)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        refused,  # such as the calls of 32-bit programs, which have other numbers
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in _FREE.values():
        steps += [(_EQUAL, 0, 1, numbers[column]), allowed]
    bound_by_first_argument = (
        (_CLONE, _CLONE_THREAD | _CLONE_NAMESPACES, _CLONE_THREAD),
        (_TGKILL, 0xFFFF_FFFF, os.getpid()),  # abort() sends it
    )
    for numbers, mask, value in bound_by_first_argument:
        steps += [
            (_EQUAL, 0, 5, numbers[column]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_AND, 0, 0, mask),
            (_EQUAL, 0, 1, value),
            allowed,
            refused,
        ]
    return [*steps, (_AT_LEAST, 0, 1, _SINCE_2019), (_RETURN, 0, 0, _FAILS | errno.ENOSYS), refused]
