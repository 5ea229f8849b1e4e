"""A PostgreSQL server of the tests' own, on a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session")
def postgresql_server(require: Callable[[str], Path]) -> Iterator[sa.URL]:
    """The URL of an empty server's maintenance database."""
    programs = require("postgres")
    initdb, pg_ctl = programs / "initdb", programs / "pg_ctl"
    folder = Path(tempfile.mkdtemp(prefix="dspex-pg-"))
    # It refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: object) -> None:
        subprocess.run([str(part) for part in command], check=True, user=user, cwd=folder, capture_output=True)

    run(initdb, "--no-sync", "--auth=trust", "--username=tests", "-D", data)
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    run(pg_ctl, "start", "--wait", "-D", data, "-l", folder / "log", "-o", options)
    yield sa.URL.create("postgresql+psycopg", username="tests", database="postgres", query={"host": str(folder)})
    run(pg_ctl, "stop", "--wait", "--mode=immediate", "-D", data)
    shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(postgresql_server: sa.URL) -> str:
    """A database of its own, empty."""
    name = f"journal_{os.urandom(4).hex()}"
    engine = sa.create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return postgresql_server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def journal_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that does not exist yet, or is empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'journal.sqlite'}"
    return request.getfixturevalue("postgresql_url")
