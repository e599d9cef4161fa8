"""The demonstration's bridge to SQLite: a server in a process of its own.

In: statements, a line each, from the agent that started it. Out: what they give, a line each;
and, in that agent's session, an event for each of them.
Does not know: what is noted.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import trio
from msgspec.structs import replace

import trimaran
from trimaran.cli._signals import Interrupt
from trimaran.cli.demo_child import listen, run_child, say
from trimaran.cli.demo_report import Said, line_of

__all__ = ["Statement", "main"]

SETTINGS = trimaran.Settings(flush_interval=0.5)  # somebody watches


class Statement(msgspec.Struct, frozen=True):
    """What is to be done in the database."""

    sql: str
    values: tuple[str, ...] = ()


async def serve(interrupt: Interrupt, database: Path) -> int:
    """Do what is asked for, until nobody asks any more."""
    async with trimaran.attach(settings=SETTINGS) as session:
        with interrupt.ends():
            async with listen() as lines:
                while (line := await lines.next()) is not None:
                    statement = msgspec.json.decode(line, type=Statement)
                    answer = await do(statement, database, session)
                    say(line_of(replace(answer, tracked=session.statistics().tracked)))
    books = session.statistics()
    say(line_of(Said(tracked=books.tracked, delivered=books.delivered)))
    return interrupt.exit_status


async def do(statement: Statement, database: Path, session: trimaran.Session) -> Said:
    """Do one thing, as an event of *session*."""
    verb = statement.sql.split(maxsplit=1)[0]
    try:
        with session.bridge_call("sql.query" if verb == "SELECT" else "sql.execute"):
            rows = await trio.to_thread.run_sync(run, database, statement)
    except sqlite3.Error as error:
        return Said(error=str(error))
    return Said(text="\n".join(": ".join(map(str, row)) for row in rows))


def run(database: Path, statement: Statement) -> Sequence[tuple[object, ...]]:
    """The rows that *statement* gives."""
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("CREATE TABLE IF NOT EXISTS notes (file TEXT, note TEXT)")
        return opened.execute(statement.sql, statement.values).fetchall()


def main() -> int:
    """Serve the database that the command line names."""
    database = Path(sys.argv[1])
    return run_child(lambda interrupt: serve(interrupt, database))


if __name__ == "__main__":
    sys.exit(main())
