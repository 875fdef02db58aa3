"""Looks at the processes of this machine, for tests that kill some and count what is left."""

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
            if int(started_by) == parent and state != "Z" and b"worker.decoder_process" in words:
                found.append(int(folder.name))
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process, other than as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
