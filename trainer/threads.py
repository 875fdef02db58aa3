"""Work spread over threads that nobody has to wait for: items in, results out in their order.

`concurrent.futures` joins its threads when a process ends, so one that hangs in a read of a dead mount would keep a
stopped run alive until it is killed. These are daemons. Knows nothing of the work.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """`work` of each item, in order, at most `threads` at a time.

    What it raises is raised once no thread works any more. An interrupt does not wait: it drops what has not begun.
    """
    waiting: queue.SimpleQueue[tuple[Item, Future[Result]]] = queue.SimpleQueue()
    futures: list[Future[Result]] = []
    for item in items:
        futures.append(Future())
        waiting.put((item, futures[-1]))
    started = [
        threading.Thread(target=_serve, args=(work, waiting), daemon=True, name=f"work-{number}")
        for number in range(min(threads, len(items)))
    ]
    for thread in started:
        thread.start()
    try:
        for future in futures:
            yield future.result()
    except Exception:
        _drop(futures)
        for thread in started:
            thread.join()
        raise
    finally:
        _drop(futures)


def _serve(work: Callable[[Item], Result], waiting: "queue.SimpleQueue[tuple[Item, Future[Result]]]") -> None:
    while True:
        try:
            item, future = waiting.get_nowait()
        except queue.Empty:
            return
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work(item))
        except BaseException as error:
            future.set_exception(error)


def _drop(futures: Sequence["Future[Result]"]) -> None:
    for future in futures:
        future.cancel()
