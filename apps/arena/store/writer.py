"""What changes the database, and says so only when it is on disk.

SQLite has one writer at a time, and a commit waits for the disk: one thread commits together all that came in while the last
commit ran (group commit). A database server does that itself among its connections: there, some threads commit job by job,
so that no transaction holds the locks of several voters.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

Result = TypeVar("Result")
Job = Callable[[Connection], Result]
"""A change of the database. It may run more than once, each time from the start, so it changes nothing else."""

GROUP = 128
"""Jobs in one commit of SQLite."""
THREADS = 8
"""Connections that write to a server."""
ATTEMPTS = 5


class Writer:
    """Runs jobs. A job's future is done only when its transaction is on disk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(writes=True)
        self._queue: queue.SimpleQueue[tuple[Job[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._group, threads = (GROUP, 1) if engine.dialect.name == "sqlite" else (1, THREADS)
        self._threads = [threading.Thread(target=self._work, name="arena-writer", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job[Result]) -> Future[Result]:
        """Return the future of the job's result. An exception in it undoes this job alone."""
        future: Future[Result] = Future()
        if self._closed:
            raise RuntimeError("The arena is closed.")
        self._queue.put((job, future))
        return future

    def run(self, job: Job[Result]) -> Result:
        """Run a job and wait for it."""
        return self.submit(job).result()

    def close(self) -> None:
        """Finish what was submitted and stop."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        open_ = True
        while open_:
            group, item = [], self._queue.get()
            while True:
                if item is None:
                    open_ = False
                    break
                if item[1].set_running_or_notify_cancel():
                    group.append(item)
                if len(group) >= self._group:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group)

    def _commit(self, group: list[tuple[Job[Any], Future[Any]]]) -> None:
        """Run the group in one transaction; where that fails (a deadlock, a lost connection), each job alone, again."""
        try:
            results = self._transaction([job for job, _ in group])
        except Exception:
            for job, future in group:
                self._alone(job, future)
            return
        for (_, future), (result, error) in zip(group, results, strict=True):
            future.set_exception(error) if error else future.set_result(result)

    def _alone(self, job: Job[Any], future: Future[Any]) -> None:
        for attempt in range(ATTEMPTS):
            try:
                [(result, error)] = self._transaction([job])
            except Exception as failure:
                if attempt == ATTEMPTS - 1:
                    future.set_exception(failure)
                continue
            future.set_exception(error) if error else future.set_result(result)
            return

    def _transaction(self, jobs: list[Job[Any]]) -> list[tuple[Any, Exception | None]]:
        """Return each job's result or its exception, after the commit."""
        results: list[tuple[Any, Exception | None]] = []
        with self._engine.begin() as connection:
            for job in jobs:
                connection.exec_driver_sql("SAVEPOINT job")
                try:
                    results.append((job(connection), None))
                except DBAPIError:  # perhaps of the whole transaction
                    raise
                except Exception as error:
                    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT job")
                    results.append((None, error))
                connection.exec_driver_sql("RELEASE SAVEPOINT job")
        return results
