"""Linux's Landlock: a process gives up, for good, what it will not need. Of no other system, and of no old kernel."""

import ctypes
import os
import sys
from typing import Final

# The same on every architecture.
_CREATE_RULESET: Final = 444
_RESTRICT_SELF: Final = 446
_TELL_VERSION: Final = 1

# What each version of it (5.13, 5.19, 6.2, 6.7, 6.10, 6.12) can forbid: so many kinds of access to files, connections
# by TCP, and signals and sockets without a name to processes that have not given up the same.
_FILES: Final = (13, 14, 15, 15, 16, 16)
_NETWORK_SINCE: Final = 4
_NETWORK: Final = 0b11
_OTHERS_SINCE: Final = 6
_OTHERS: Final = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "others")]


def version() -> int:
    """The kernel's version of Landlock, of which follows how much can be given up; 0 where there is none, or where
    this process may not use it."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _TELL_VERSION)))


def give_up_everything() -> None:
    """This thread and those that it starts open, make, change, remove and run no file, and reach no other process, as
    far as `version` goes.

    What is open stays open. `PR_SET_NO_NEW_PRIVS` must be set. OSError where there is a version and the kernel forbids
    nothing, as to a process that has given up something 16 times.
    """
    known = version()
    if known == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = _Ruleset(
        (1 << _FILES[min(known, len(_FILES)) - 1]) - 1,
        _NETWORK if known >= _NETWORK_SINCE else 0,
        _OTHERS if known >= _OTHERS_SINCE else 0,
    )
    descriptor = libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    if descriptor < 0 or libc.syscall(_RESTRICT_SELF, descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock forbids nothing")
    os.close(descriptor)
