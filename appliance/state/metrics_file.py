"""The file of figures over time: one SQLite table, points by level and time, bounded by age. Blocking; one thread's.

    point (level, time, series) → means, highest          WITHOUT ROWID: a tick's rows lie together, so does what ages out

Losing the newest seconds in a crash is no harm (synchronous=NORMAL); a damaged file is put aside and begun anew, since
nothing depends on it. Coarser points are made from the finer ones in the file, so a restart loses nothing of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from appliance.errors import HostError, NoSpace
from appliance.model.metrics import LEVELS, WITH_HIGHEST, Fold, Point, fold, pack, unpack

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
SERIES_LIMIT = 4096
BUSY_TIMEOUT_MS = 2000
ROLL_AT_ONCE = 32
"""Coarser steps made in one transaction: after a long time off there may be many."""
_SCHEMA = f"""
CREATE TABLE series (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE rolled (level INTEGER PRIMARY KEY, until INTEGER NOT NULL);
CREATE TABLE point (
    level INTEGER NOT NULL, time INTEGER NOT NULL, series INTEGER NOT NULL, means BLOB NOT NULL, highest BLOB,
    PRIMARY KEY (level, time, series)
) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
"""
_READ = """
WITH RECURSIVE step (time) AS (
    SELECT :first UNION ALL SELECT time + :step FROM step WHERE time + :step <= :last
)
SELECT point.time, means, highest FROM step JOIN point
ON point.level = :level AND point.time = step.time AND point.series = :series
"""


class MetricsFile:
    """The open file. Every method raises `HostError` naming the file; nothing of a failed call is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._ids: dict[str, int] = {}

    def open(self) -> None:
        """Open or make it; one that is damaged, or of a newer version, is put aside first."""
        try:
            self._connection = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._error("open", error) from error
            self._put_aside(str(error))
            try:
                self._connection = self._connect()
            except sqlite3.Error as again:
                raise self._error("open", again) from again

    def close(self) -> None:
        """Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def add(self, time: int, points: Mapping[str, Sequence[float]]) -> int:
        """Write one tick's points of the finest level, make what coarser ones are due, remove what is too old.

        `time` is the tick's step; a second tick of the same step replaces the first. Returns how many series had no
        room any more.
        """
        with self._transaction("write") as connection:
            known = [(name, values) for name, values in points.items() if self._id(connection, name) is not None]
            rows = [(0, time, self._ids[name], pack(values), None) for name, values in known]
            connection.executemany("INSERT OR REPLACE INTO point VALUES (?, ?, ?, ?, ?)", rows)
            self._roll(connection, time)
            for number, level in enumerate(LEVELS):
                connection.execute("DELETE FROM point WHERE level = ? AND time < ?", (number, time - level.keep_s))
        return len(points) - len(known)

    def read(self, name: str, *, level: int, first: int, last: int, how: Fold) -> Sequence[Point]:
        """A series' points of one level from `first` to `last`, oldest first."""
        step_s = LEVELS[level].step_s
        with self._transaction("read") as connection:
            row = connection.execute("SELECT id FROM series WHERE name = ?", (name,)).fetchone()
            if row is None:
                return []
            values = {
                "first": first // step_s * step_s,
                "last": last,
                "step": step_s,
                "level": level,
                "series": row[0],
            }
            found = connection.execute(_READ, values).fetchall()
        return [
            Point(time, unpack(highest if how is Fold.MAX and highest is not None else means))
            for time, means, highest in found
        ]

    def forget(self, name: str) -> None:
        """A series' object is gone: a later one of the same name begins anew. Its points go with the years."""
        with self._transaction("forget") as connection:
            connection.execute("DELETE FROM series WHERE name = ?", (name,))
            self._ids.pop(name, None)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _roll(self, connection: sqlite3.Connection, now: int) -> None:
        """Make the steps of each coarser level that have ended, `ROLL_AT_ONCE` at most; the next tick goes on."""
        done = dict(connection.execute("SELECT level, until FROM rolled").fetchall())
        whole_until = now  # up to where the level below has all its steps
        for number in range(1, len(LEVELS)):
            step_s = LEVELS[number].step_s
            until = whole_until // step_s * step_s
            at = self._roll_level(connection, number, done.get(number, 0), until)
            if at != done.get(number, 0):
                connection.execute("INSERT OR REPLACE INTO rolled VALUES (?, ?)", (number, at))
            whole_until = at

    def _roll_level(self, connection: sqlite3.Connection, number: int, at: int, until: int) -> int:
        """Make steps of one level from `at` on, over gaps; returns from where the next time."""
        step_s = LEVELS[number].step_s
        for _ in range(ROLL_AT_ONCE):
            query = "SELECT min(time) FROM point WHERE level = ? AND time >= ? AND time < ?"
            (found,) = connection.execute(query, (number - 1, at, until)).fetchone()
            if found is None:
                return max(at, until)
            begin = found // step_s * step_s
            self._roll_step(connection, number, begin)
            at = begin + step_s
        return at

    def _roll_step(self, connection: sqlite3.Connection, number: int, begin: int) -> None:
        query = "SELECT series, means, highest FROM point WHERE level = ? AND time >= ? AND time < ?"
        rows = connection.execute(query, (number - 1, begin, begin + LEVELS[number].step_s))
        means: dict[int, list[tuple[float, ...]]] = {}
        highest: dict[int, list[tuple[float, ...]]] = {}
        for series, mean, high in rows:
            means.setdefault(series, []).append(unpack(mean))
            highest.setdefault(series, []).append(unpack(high if high is not None else mean))
        keeps = number >= WITH_HIGHEST
        made = [
            (
                number,
                begin,
                series,
                pack(fold(values, Fold.AVERAGE)),
                pack(fold(highest[series], Fold.MAX)) if keeps else None,
            )
            for series, values in means.items()
        ]
        connection.executemany("INSERT OR REPLACE INTO point VALUES (?, ?, ?, ?, ?)", made)

    def _id(self, connection: sqlite3.Connection, name: str) -> int | None:
        known = self._ids.get(name)
        if known is not None:
            return known
        if len(self._ids) >= SERIES_LIMIT:
            return None
        connection.execute("INSERT OR IGNORE INTO series (name) VALUES (?)", (name,))
        (number,) = connection.execute("SELECT id FROM series WHERE name = ?", (name,)).fetchone()
        self._ids[name] = number
        return int(number)

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        if connection is None:
            raise HostError(f"figures {self._path}: not open")
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise self._error(doing, error) from error
        except BaseException:
            self._roll_back(connection)
            raise

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        self._ids = {}  # what was numbered in this transaction has no number
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise HostError.from_os_error(error, f"figures {self._path}") from error
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            elif version != SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"its version {version} is not ours")
            self._ids = dict(connection.execute("SELECT name, id FROM series").fetchall())
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _put_aside(self, why: str) -> None:
        log.error("figures %s: %s: put aside, figures begin anew", self._path, why)
        try:
            self._path.replace(self._path.with_suffix(".damaged"))
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise HostError.from_os_error(error, f"figures {self._path}: put aside") from error

    def _error(self, doing: str, error: sqlite3.Error) -> HostError:
        full = (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_FULL
        return (NoSpace if full else HostError)(f"figures {self._path}: {doing}: {error}")
