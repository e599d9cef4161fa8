"""The page on configuration says what is so: every setting, every line that is logged."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import trimaran

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "configuration.md").read_text()
LIBRARY = ROOT / "src" / "trimaran"
OTHER_PROGRAMS = ("cli", "receiver")
"""Packages beside the library, which have their own things to say."""

SIZES = {"KiB": 1024, "MiB": 1024 * 1024}
UNITS = {"s", "bytes", "events", "requests", "requests/s"}


def rows(first_heading: str) -> list[list[str]]:
    """The cells of the table whose first column has this heading, without its head."""
    _, _, below = PAGE.partition(f"\n{first_heading} | ")
    table = below.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")] for line in table]


def value_of(cell: str) -> object:
    """A default as it is written: a Python value, or a size such as "64 KiB"."""
    number, _, unit = cell.partition(" ")
    return int(number) * SIZES[unit] if unit in SIZES else ast.literal_eval(cell.strip("`"))


def logged() -> Iterator[tuple[str, str]]:
    """Every line that the library logs, with its level."""
    for path in LIBRARY.rglob("*.py"):
        if path.relative_to(LIBRARY).parts[0] in OTHER_PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="warn" | "inform" as how),
                    args=[ast.Constant(value=str(line)), *_],
                ):
                    yield line, {"warn": "warning", "inform": "info"}[how]
                case ast.Call(
                    func=ast.Attribute(attr="_log"),
                    args=[ast.Constant(value=str(level)), ast.Constant(value=str(line)), *_],
                ):
                    yield line, level
                case _:
                    pass


@pytest.mark.parametrize(
    ("settings", "heading"),
    [(trimaran.Settings, "Setting"), (trimaran.Spool, "Spool"), (trimaran.Relay, "Relay")],
)
def test_every_setting_is_on_the_page_with_its_default(
    settings: type[msgspec.Struct], heading: str
) -> None:
    """The table has all fields of the class, in their order, and their defaults."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(settings)}

    documented = {name.strip("`"): value_of(default) for name, default, *_ in rows(heading)}

    assert list(documented) == list(defaults)
    assert documented == defaults


@pytest.mark.parametrize(
    ("name", "default", "unit", "reason"), [*rows("Setting"), *rows("Spool"), *rows("Relay")]
)
def test_every_setting_has_a_unit_and_a_reason(
    name: str, default: str, unit: str, reason: str
) -> None:
    """Numbers have a unit, flags and words have none; all have a reason, in sentences."""
    is_number = type(value_of(default)) in {int, float}

    assert (unit in UNITS) if is_number else (unit == ""), name
    assert reason.endswith("."), name


def test_everything_that_is_logged_is_on_the_page() -> None:
    """The table has every line that the library can log, at its level, and no other."""
    documented = {(event.strip("`"), level) for event, level, _ in rows("Event")}

    assert documented == set(logged())


def test_the_switches_are_on_the_page_in_their_precedence() -> None:
    """With each line of the table set, and all below it, that line decides."""
    lines = re.findall(r"^\| \d \| (.*?) \| (\w+) \|", PAGE, re.MULTILINE)
    account = trimaran.Account("https://account.example.com")
    environ = {
        "DO_NOT_TRACK": "1",
        "APP_TELEMETRY_DISABLED": "1",
        "APP_TELEMETRY_URL": "https://url.example.com",
    }
    decisions = [trimaran.resolve("app", account, environ, enabled=False)]
    decisions.append(trimaran.resolve("app", account, environ))
    del environ["DO_NOT_TRACK"]
    decisions.append(trimaran.resolve("app", account, environ))
    del environ["APP_TELEMETRY_DISABLED"]
    decisions.append(trimaran.resolve("app", account, environ))
    decisions.append(trimaran.resolve("app", None, environ))
    decisions.append(trimaran.resolve("app", None, {}))
    words = {"code": "enabled=False", "account": "account", "default": "nothing"}

    for (line, tier), decision in zip(lines, decisions, strict=True):
        assert tier == str(decision.tier)
        assert words.get(decision.source, decision.source.replace("APP", "{APP}")) in line
