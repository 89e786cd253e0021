"""A PostgreSQL server of the test's own: its files in a temporary folder, no port, gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def binaries() -> Path | None:
    """Return the folder of the newest installed server's programs (Debian's layout), or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def server() -> Iterator[str]:
    """Start a server and yield its URL."""
    programs = binaries()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="palate-pg-", dir="/tmp"))  # a socket's path is short, and not root's alone
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # initdb refuses root
        shutil.chown(folder, "nobody")
        who = {"user": "nobody"}
    data, log = folder / "data", folder / "log"
    try:
        subprocess.run(
            [programs / "initdb", "-D", data, "-A", "trust", "-U", "palate", "-E", "UTF8", "--no-locale", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            **who,
        )
        with log.open("wb") as output:
            running = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="],
                stdout=output,
                stderr=output,
                cwd=folder,
                **who,
            )
        try:
            _wait(folder, running, log)
            yield f"postgresql://palate@/postgres?host={folder}"
        finally:
            running.send_signal(signal.SIGINT)  # fast shutdown
            running.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path, running: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers."""
    import psycopg

    until = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < until:
        try:
            psycopg.connect(host=str(folder), user="palate", dbname="postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise RuntimeError(log.read_text())
