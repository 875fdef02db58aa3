"""What must never be unpickled."""

from collections.abc import Callable
from pathlib import Path


class Evil:
    """Unpickled, it would create the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return (Path.touch, (self.path,))
