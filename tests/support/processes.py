"""Looks at the processes of this machine and its ports, for tests that kill some and count what is left."""

import socket
import sys
from pathlib import Path


def decoders_of(parent: int) -> list[int]:
    """The decoder processes that `parent` started, as far as they live."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, started_by = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                words = (folder / "cmdline").read_bytes()
            except OSError:  # it ended while we looked
                continue
            if int(started_by) == parent and state != "Z" and b"worker.decoder_program" in words:
                found.append(int(folder.name))
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process, other than as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listens_at(port: int) -> list[str]:
    """The addresses at which somebody takes connections to this TCP port."""
    found = []
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            address, _, number = words[1].partition(":")
            if int(number, 16) == port and words[3] == "0A":
                found.append(socket.inet_ntop(family, _in_network_order(bytes.fromhex(address))))
    return found


def _in_network_order(address: bytes) -> bytes:
    if sys.byteorder == "big":
        return address
    return b"".join(address[at : at + 4][::-1] for at in range(0, len(address), 4))


def stop_takes_s() -> float:
    """The longest that a worker takes to end after SIGTERM with the default settings, whatever hangs."""
    from worker.service import CLOSING_S, THREAD_CLOSING_S  # here, for it imports torch
    from worker.settings import Settings

    threads = 2  # the tuner's and the champion's
    return float(Settings.model_fields["drain_s"].default) + CLOSING_S + threads * THREAD_CLOSING_S
