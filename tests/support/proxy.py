"""A TCP proxy that can lose its connections without closing them, as a machine that loses power does."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards a port of its own on loopback to `target`, in a thread of its own.

    Args:
        target: the port.
        dark_at: a connection goes dark, as by `go_dark`, with the first bytes from the client that have this in them.

    Attributes:
        swallowed: bytes that lost connections took and passed to nobody, by who sent them.
    """

    def __init__(self, target: int, *, dark_at: bytes | None = None) -> None:
        self.port = 0
        self.swallowed = {"client": 0, "server": 0}
        self._target = target
        self._dark_at = dark_at
        self._dark = asyncio.Event()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)
        self._thread.start()
        if not self._started.wait(10):
            raise AssertionError("the proxy did not start")

    def go_dark(self) -> None:
        """From its return on nothing passes over the connections there are, either way; new ones are forwarded.

        Nobody is told, and nobody ever will be: both ends stay open here, whatever either of them does, until the
        proxy ends. So the server goes on believing that its clients are there, and answers them.
        """
        asyncio.run_coroutine_threadsafe(self._darken(), self._loop).result(10)

    async def _darken(self) -> None:
        self._dark.set()
        self._dark = asyncio.Event()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dark = self._dark if self._dark_at is None else asyncio.Event()
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        pumps = [
            asyncio.create_task(self._pump("client", reader, back_writer, dark)),
            asyncio.create_task(self._pump("server", back_reader, writer, dark)),
        ]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if dark.is_set():  # one end has closed its own; what says so is lost like all else
                await self._stop.wait()
        for pump in pumps:
            pump.cancel()
        back_writer.close()
        writer.close()

    async def _pump(
        self, sender: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dark: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._dark_at is not None and sender == "client" and self._dark_at in data:
                    dark.set()
                if dark.is_set():
                    self.swallowed[sender] += len(data)
                    continue
                writer.write(data)
                await writer.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
