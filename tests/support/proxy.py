"""A TCP proxy that can lose its connections without closing them, as a machine that loses power does."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards a port of its own on loopback to `target`, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._dark = asyncio.Event()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)
        self._thread.start()
        if not self._started.wait(10):
            raise AssertionError("the proxy did not start")

    def go_dark(self) -> None:
        """From now on nothing passes over the connections there are, and nobody is told; new ones are forwarded."""
        self._loop.call_soon_threadsafe(self._darken)

    def _darken(self) -> None:
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
        dark = self._dark
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, back_writer)),
            asyncio.create_task(self._pump(back_reader, writer)),
        ]
        lost = asyncio.create_task(dark.wait())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([*pumps, lost], return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        lost.cancel()
        # Where it is lost, the server's end closes, as its keep-alive would do in time; the other learns nothing.
        back_writer.close()
        if dark.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self._stop.wait()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
