"""One database for all workers: SQLite in the arena's folder, or any SQLAlchemy URL; brought up to date by alembic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from palate.errors import UserError

FILE = "arena.db"
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30


def connect(folder: Path, url: str | None = None) -> Engine:
    """Return an engine whose schema is current.

    Without `url` the database is `folder/arena.db`: SQLite, write-ahead log, every commit on disk before it returns
    (synchronous=FULL). Raises UserError where it cannot be opened, holds something else, or is of a newer palate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    engine = open_engine(url or f"sqlite:///{folder.resolve() / FILE}")
    try:
        with engine.execution_options(writes=True).begin() as connection:
            upgrade(connection)
    except OperationalError as error:
        raise UserError(f"Cannot open the arena's database {shown(engine)}: {error.orig}.") from None
    return engine


def open_engine(url: str) -> Engine:
    """Return an engine. Its copy `engine.execution_options(writes=True)` takes SQLite's write lock at BEGIN."""
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        server: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 20}
        more = {"connect_args": {"timeout": BUSY_SECONDS}} if sqlite else server
        engine = create_engine(parsed, **more)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(f"'{url}' is no database URL ({error}). Write postgresql://user@host/name.") from None
    except ImportError as error:
        raise UserError(f"No driver for '{url}' ({error}). For PostgreSQL: pip install 'palate[postgres]'.") from None
    if sqlite:
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # sqlite3 would begin late, and never for a read
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def upgrade(connection: Connection) -> None:
    """Bring the schema up to date, within the caller's transaction; a SQLite file is copied first.

    Raises UserError for tables that are not an arena's, and for a schema newer than this palate knows.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = connection.engine
    if connection.dialect.name == "postgresql":  # two workers may start at once
        connection.execute(text("SELECT pg_advisory_xact_lock(7052465)"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head():
        return
    if current is None:
        strangers = inspect(connection).get_table_names()
        if strangers:
            raise UserError(
                f"The database {shown(engine)} holds tables that are not an arena's ({', '.join(strangers[:3])}). "
                "Name an empty one."
            )
    elif current not in {revision.revision for revision in script.walk_revisions()}:
        raise UserError(
            f"The database {shown(engine)} has the schema {current}, which this palate does not know: a newer one made it. "
            "Upgrade palate, or open another store."
        )
    elif connection.dialect.name == "sqlite" and engine.url.database:
        _copy(Path(engine.url.database), current)
    command.upgrade(config, "head")


def _copy(database: Path, revision: str) -> None:
    import sqlite3

    kept = database.with_name(f"{database.stem}.before-{revision}-{time.strftime('%Y%m%d%H%M%S')}.db")
    source = sqlite3.connect(database)
    try:
        source.execute("VACUUM INTO ?", (str(kept),))
    finally:
        source.close()


def shown(engine: Engine) -> str:
    """Return the database's URL without its password."""
    return engine.url.render_as_string(hide_password=True)
