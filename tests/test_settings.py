import math
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimaran

NUMBERS = [
    "flush_interval",
    "request_timeout",
    "account_timeout",
    "retry_initial",
    "retry_max",
    "retry_after_max",
    "retry_timeout",
    "retry_budget",
    "unauthorized_interval",
]
BYTES = ["memory_bytes", "batch_bytes", "event_bytes"]
COUNTS = ["batch_events", "mailbox_events", "backlog_events", "max_requests"]
FLAGS = ["enabled", "strict"]


def test_the_defaults_are_those_of_the_design() -> None:
    """What a host that says nothing gets; each number has its reason in the design."""
    assert msgspec.structs.asdict(trimaran.Settings()) == {
        "enabled": True,
        "flush_interval": 5,
        "batch_events": 200,
        "batch_bytes": 512 * 1024,
        "event_bytes": 64 * 1024,
        "mailbox_events": 20_000,
        "mailbox_policy": "drop_oldest",
        "backlog_events": 20_000,
        "memory_bytes": 64 * 1024 * 1024,
        "max_requests": 16,
        "request_timeout": 10,
        "account_timeout": 2,
        "drain_timeout": 2,
        "retry_initial": 0.5,
        "retry_max": 5,
        "retry_after_max": 120,
        "retry_timeout": 3600,
        "retry_budget": 10,
        "unauthorized_interval": 60,
        "spool": False,
        "relay": False,
        "strict": False,
    }


def test_settings_can_be_read_from_json() -> None:
    """A host may keep them in a file, the parts of a spool and a relay among them."""
    written = msgspec.json.encode(
        trimaran.Settings(
            drain_timeout=1.5,
            spool=trimaran.Spool(most_bytes=1_000),
            relay=trimaran.Relay(idle_timeout=3.0),
        )
    )

    assert msgspec.json.encode(msgspec.json.decode(written, type=trimaran.Settings)) == written
    assert msgspec.json.decode(b'{"relay": "there"}', type=trimaran.Settings).relay == "there"


def test_every_setting_is_checked() -> None:
    """No setting is in none of the groups below: a new one has to be tested as well."""
    others = {"drain_timeout", "mailbox_policy", "relay", "spool"}

    assert {*NUMBERS, *BYTES, *COUNTS, *FLAGS, *others} == set(trimaran.Settings.__struct_fields__)


@pytest.mark.parametrize("name", [*NUMBERS, *BYTES])
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, True, "5", None])
def test_a_number_must_be_above_zero(name: str, value: object) -> None:
    """The message names the setting, the value and what it may be."""
    settings: Any = trimaran.Settings

    with pytest.raises(ValueError, match=f"^Settings\\({name}={value!r}\\): {name} must be "):
        settings(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, math.inf, True, "5", None])
def test_a_count_must_be_a_whole_number_above_zero(name: str, value: object) -> None:
    """Half an event does not exist, and neither does a mailbox for none."""
    settings: Any = trimaran.Settings

    with pytest.raises(ValueError, match=f"{name} must be a whole number above 0"):
        settings(**{name: value})


@pytest.mark.parametrize("value", [-0.1, math.nan, False, "0", None])
def test_a_drain_timeout_must_not_be_below_zero(value: object) -> None:
    """No time to drain is a choice; less than none is a mistake."""
    settings: Any = trimaran.Settings

    with pytest.raises(ValueError, match="drain_timeout must be 0 or a number above it"):
        settings(drain_timeout=value)


@pytest.mark.parametrize("value", ["drop_all", "", None, [], 1])
def test_a_policy_must_be_one_of_two(value: object) -> None:
    """Whatever else is given is named in the message."""
    settings: Any = trimaran.Settings

    with pytest.raises(ValueError, match="mailbox_policy must be 'drop_oldest' or 'drop_newest'"):
        settings(mailbox_policy=value)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["false", "", 0, 1, None])
def test_a_flag_must_be_a_bool(name: str, value: object) -> None:
    """A text from a configuration file would be true whatever it says, "false" too."""
    settings: Any = trimaran.Settings

    with pytest.raises(ValueError, match=f"{name} must be True or False"):
        settings(**{name: value})


@pytest.mark.parametrize("name", [*NUMBERS, "drain_timeout"])
@given(value=st.floats(min_value=0, exclude_min=True) | st.integers(1, 1 << 70))
def test_any_number_above_zero_is_taken(name: str, value: float) -> None:
    """Whole, broken or infinite: only the range is bounded."""
    settings: Any = trimaran.Settings

    assert getattr(settings(**{name: value}), name) == value


def test_nothing_is_left_of_the_time_to_drain() -> None:
    """A host may choose to leave at once."""
    assert trimaran.Settings(drain_timeout=0).drain_timeout == 0


def test_an_event_fits_into_a_batch() -> None:
    """Otherwise the largest events could never be sent."""
    with pytest.raises(ValueError, match="event_bytes must be less than batch_bytes"):
        trimaran.Settings(event_bytes=2000, batch_bytes=2000)

    assert trimaran.Settings(event_bytes=1999, batch_bytes=2000).event_bytes == 1999


def test_a_batch_fits_into_memory() -> None:
    """Otherwise no batch would ever be full."""
    with pytest.raises(ValueError, match="memory_bytes must be at least batch_bytes"):
        trimaran.Settings(memory_bytes=524_287)

    assert trimaran.Settings(memory_bytes=524_288).memory_bytes == 524_288


def test_settings_are_values() -> None:
    """Equal settings are equal, a changed copy is checked too, and nothing is changed in place."""
    settings: Any = trimaran.Settings(flush_interval=1)

    assert settings == trimaran.Settings(flush_interval=1.0)
    assert repr(settings).startswith("Settings(enabled=True, flush_interval=1, ")
    with pytest.raises(AttributeError):
        settings.flush_interval = 2
    with pytest.raises(ValueError, match="flush_interval"):
        msgspec.structs.replace(settings, flush_interval=-1)


def test_settings_are_keywords_only() -> None:
    """The order of settings is no part of the contract."""
    settings: Any = trimaran.Settings

    with pytest.raises(TypeError):
        settings(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trimaran.Settings(spool="yes"), "spool must be True, False or a Spool"),  # type: ignore[arg-type]
        (lambda: trimaran.Spool(most_bytes=0), "Spool(most_bytes=0): most_bytes must be a number"),
        (lambda: trimaran.Spool(most_seconds=-1), "most_seconds must be a number above 0"),
        (lambda: trimaran.Spool(survives="all"), "survives must be 'kill' or 'power_loss'"),  # type: ignore[arg-type]
        (lambda: trimaran.Spool(directory=""), "directory must be a path as text, or None"),
    ],
)
def test_a_spool_is_checked(make: Callable[[], object], message: str) -> None:
    """The message names the setting, what it was and what it may be."""
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trimaran.Settings(relay=1), "relay must be True, False, a path or a Relay"),  # type: ignore[arg-type]
        (lambda: trimaran.Settings(relay=""), "relay must be True, False, a path or a Relay"),
        (lambda: trimaran.Relay(idle_timeout=0), "Relay(idle_timeout=0): idle_timeout must be"),
        (lambda: trimaran.Relay(most_bytes=0), "most_bytes must be a number above 0"),
        (lambda: trimaran.Relay(most_seconds=-1), "most_seconds must be a number above 0"),
        (lambda: trimaran.Relay(survives="all"), "survives must be 'kill' or 'power_loss'"),  # type: ignore[arg-type]
        (lambda: trimaran.Relay(directory=""), "directory must be a path as text, or None"),
    ],
)
def test_a_relay_is_checked(make: Callable[[], object], message: str) -> None:
    """The message names the setting, what it was and what it may be."""
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("relay", [True, "there", trimaran.Relay()])
def test_a_relay_is_named_by_its_directory_too(relay: bool | str | trimaran.Relay) -> None:
    """It may be a flag, a path as text, or all of its values."""
    assert trimaran.Settings(relay=relay).relay == relay
