# SPDX-License-Identifier: GPL-2.0-only
"""Threads for an event loop: tasks are queued, results make a descriptor readable.

Each thread runs one generator, from tasks to results:

    def squares(numbers: Tasks[int]) -> Iterator[int]:
        for number in numbers:
            yield number * number

    workers = Workers(squares, threads=2, name="squares")
    loop.register(workers.fileno(), lambda: print(*workers.results()))
    workers.put(3)

An exception of a generator ends its thread and is raised by `results`: a loop without its worker
would appear to be running.

Not `concurrent.futures`: an executor neither exposes its queue, which group commit needs, nor has a
descriptor.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Tasks(Generic[Task]):
    """One queue for all threads; iterating waits for the next task, and ends at `end`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()

    def put(self, task: Task) -> None:
        """Queues a task; never blocks."""
        self._queue.put(task)

    def end(self) -> None:
        """Ends every iteration after the tasks that are queued now."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Task]:
        while (task := self._queue.get()) is not None:
            yield task
        self.end()  # of the other threads' iterations

    def next_queued(self) -> Task | None:
        """The next task if one is queued; does not wait."""
        try:
            task = self._queue.get_nowait()
        except queue.Empty:
            return None
        if task is None:
            self.end()
        return task

    def discard(self) -> None:
        """Drops the tasks that no thread has taken."""
        while self.next_queued() is not None:
            pass


class Workers(Generic[Task, Result]):
    """Threads that run one generator each; all methods but `deliver` in the loop's thread.

    Args:
        run: from tasks to results; called once in each thread.
        threads: how many.
        name: of the threads.
    """

    def __init__(
        self, run: Callable[[Tasks[Task]], Iterator[Result]], *, threads: int, name: str
    ) -> None:
        self._run = run
        self._tasks: Tasks[Task] = Tasks()
        self._results: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            threading.Thread(target=self._run_thread, name=f"{name}-{at}", daemon=True)
            for at in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """Polls readable when there are results."""
        return self._wakeup

    def put(self, task: Task) -> None:
        """Queues a task; never blocks."""
        self._tasks.put(task)

    def results(self) -> Iterator[Result]:
        """What was yielded since the last call.

        Raises:
            Exception: raised by a thread, which has ended.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        with contextlib.suppress(queue.Empty):
            while True:
                result = self._results.get_nowait()
                if isinstance(result, Exception):
                    raise result
                yield result

    def deliver(self, result: Result | Exception) -> None:
        """Adds a result, or an exception to be raised; thread-safe."""
        self._results.put(result)
        os.eventfd_write(self._wakeup, 1)

    def discard(self) -> None:
        """Drops the tasks that no thread has taken."""
        self._tasks.discard()

    def finish(self) -> None:
        """Ends the threads when every queued task is done; results can still be read."""
        self._tasks.end()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Finishes, and closes the descriptor."""
        self.finish()
        os.close(self._wakeup)

    def _run_thread(self) -> None:
        try:
            for result in self._run(self._tasks):
                self.deliver(result)
        except Exception as error:
            self.deliver(error)
