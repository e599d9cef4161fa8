"""What a relay decides by itself: when to end, whom to serve, what to be told."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._relay.messages import (
    PROTOCOL,
    Answer,
    Batches,
    Call,
    Hello,
    MessageError,
    NewToken,
    Refusal,
    Refused,
    Welcome,
    answer_from,
    answer_to,
    call_from,
    encoded,
    message_from,
    report_from,
    role_from,
    should_retire,
)
from trimaran._relay.orders import orders_from, orders_of, relay_environment, words_of
from trimaran._relay.outlet import decision_of, problem_with
from trimaran._relay.place import RelayPlace, relay_of
from trimaran._relay.server import Idleness, Noted


def test_it_ends_when_it_was_not_needed_for_long_enough() -> None:
    """The time counts from when nothing held it any more, and starts again after each need."""
    idleness = Idleness(30.0)

    assert idleness.ends_at(100.0, agents=1, can_deliver=False) == math.inf
    assert idleness.ends_at(200.0, agents=0, can_deliver=True) == math.inf
    assert idleness.ends_at(300.0, agents=0, can_deliver=False) == 330.0
    assert idleness.ends_at(320.0, agents=0, can_deliver=False) == 330.0
    assert idleness.ends_at(325.0, agents=2, can_deliver=True) == math.inf
    assert idleness.ends_at(326.0, agents=0, can_deliver=False) == 356.0


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 2), st.booleans()), min_size=1))
def test_it_never_ends_while_it_is_needed(looks: list[tuple[float, int, bool]]) -> None:
    """Nor sooner than its time after the last need, nor later."""
    idleness, now, quiet_since = Idleness(10.0), 0.0, math.nan
    for passed, agents, can_deliver in looks:
        now += passed
        is_needed = agents > 0 or can_deliver
        if is_needed:
            quiet_since = math.nan
        elif math.isnan(quiet_since):
            quiet_since = now
        ends_at = idleness.ends_at(now, agents=agents, can_deliver=can_deliver)
        assert ends_at == (math.inf if is_needed else quiet_since + 10.0)


def test_an_agent_of_the_same_protocol_is_welcome() -> None:
    """Unless its destination makes no sense; the answer says why."""
    hello = Hello(protocol=PROTOCOL)

    assert answer_to(hello, version="1.2", problem=None) == Welcome(version="1.2")
    refused = answer_to(hello, version="1.2", problem="the URL is odd" * 1000)
    assert isinstance(refused, Refused)
    assert refused.why is Refusal.MEANING
    assert len(encoded(refused)) < 1024


@pytest.mark.parametrize(("theirs", "retires"), [(-1, True), (0, False), (1, False)])
def test_of_two_versions_the_newer_one_stays(theirs: int, *, retires: bool) -> None:
    """An agent asks an older relay to end, and leaves a newer one alone."""
    refused = Refused(why=Refusal.PROTOCOL, reason="", protocol=PROTOCOL + theirs)

    assert should_retire(refused) is retires
    assert not should_retire(msgspec.structs.replace(refused, why=Refusal.DISK))


def test_another_protocol_is_refused_with_ones_own() -> None:
    """Whatever else is in the hello, so that the other side can judge."""
    answer = answer_to(Hello(protocol=PROTOCOL + 1), version="1.2", problem="odd")

    assert isinstance(answer, Refused)
    assert (answer.why, answer.protocol) == (Refusal.PROTOCOL, PROTOCOL)
    assert "1.2" in answer.reason


def test_a_hello_of_another_version_can_be_read() -> None:
    """With fields that are not known here, and without those that are."""
    strange = msgspec.msgpack.encode({"type": "hello", "protocol": 7, "colour": "blue"})

    assert message_from(strange) == Hello(protocol=7)


@pytest.mark.parametrize("read", [message_from, answer_from, call_from, role_from, report_from])
def test_what_is_no_message_is_an_error(read: object) -> None:
    """Not MessagePack, or of no kind that is known."""
    assert callable(read)
    for data in (b"", b"\xc1", msgspec.msgpack.encode({"type": "strange"})):
        with pytest.raises(MessageError):
            read(data)


def test_no_token_is_shown() -> None:
    """A value that carries one does not say it of itself."""
    for value in (
        Hello(protocol=1, token="s3same"),
        NewToken(token="s3same"),
        Call(after="s3same"),
    ):
        assert "s3same" not in repr(value)


@pytest.mark.parametrize(
    "value", [Batches(batches=[]), Hello(protocol=1), NewToken(token="t")], ids=repr
)
def test_a_message_comes_back_as_it_was(value: Batches | Hello | NewToken) -> None:
    """In the same kind, with the same values."""
    assert message_from(encoded(value)) == value


def test_an_answer_comes_back_as_it_was() -> None:
    """Also one that refuses."""
    answers: list[Answer] = [Welcome(version="1"), Refused(why=Refusal.DISK, reason="full")]
    for answer in answers:
        assert answer_from(encoded(answer)) == answer


def test_orders_are_words_of_a_command_line() -> None:
    """Infinity included, which JSON has not; the limits for sending follow from them."""
    settings = trimaran.Settings(retry_initial=100.0, request_timeout=math.inf)
    orders = orders_of(trimaran.Relay(directory="there", most_seconds=math.inf), settings)

    assert orders_from(words_of(orders)) == orders
    assert Path(orders.directory).is_absolute()
    chosen = orders.settings()
    assert (chosen.retry_max, chosen.retry_timeout) == (100.0, math.inf)
    with pytest.raises(ValueError, match="unpack"):
        orders_from([])
    with pytest.raises(ValueError, match="directory"):
        orders_from(["{}"])


def test_a_relay_gets_nothing_of_the_agents_own() -> None:
    """What Python, the network and the socket need; no switch, no token, no other variable."""
    environ = {
        "PATH": "/bin",
        "PYTHONPATH": "/lib",
        "https_proxy": "http://proxy",
        "NO_PROXY": "*",
        "XDG_RUNTIME_DIR": "/run",
        "LC_ALL": "C",
        "AGENT_TOKEN": "s3same",
        "AGENT_TELEMETRY_URL": "https://x.test",
        "OPENAI_API_KEY": "s3same",
    }

    kept = relay_environment(environ)

    assert set(environ) - set(kept) == {"AGENT_TOKEN", "AGENT_TELEMETRY_URL", "OPENAI_API_KEY"}


def test_settings_name_a_relay_in_several_ways(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a flag, by its directory, by its values; without a directory it is the app's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    own = trimaran.Relay(directory=str(tmp_path / "altimate" / "relay"))

    assert relay_of("altimate", trimaran.Settings()) is None
    assert relay_of("altimate", trimaran.Settings(relay=True)) == own
    named = trimaran.Relay(directory="there")
    for relay in ("there", named):
        assert relay_of("altimate", trimaran.Settings(relay=relay)) == named
    values = trimaran.Relay(idle_timeout=1, most_bytes=2, most_seconds=3, survives="power_loss")
    assert relay_of("altimate", trimaran.Settings(relay=values)) == msgspec.structs.replace(
        values, directory=own.directory
    )


@pytest.mark.parametrize(
    "destination",
    [
        "",
        "disabled https://x.test",
        "anonymous",
        "anonymous ftp://x.test",
        "authenticated http://x.test a@b",
    ],
)
def test_a_strange_destination_is_none(destination: str) -> None:
    """No tier that is known, no URL, or one that a token must not go to."""
    assert problem_with(destination) is not None
    assert decision_of(destination) is None


def test_a_destination_says_where_batches_go() -> None:
    """An account may have no e-mail address, but for what stands there; or one with a space."""
    for destination in (
        "authenticated https://x.test account:0f",
        "authenticated https://x.test Ann B <a@b>",
        "anonymous https://x.test",
    ):
        decision = decision_of(destination)
        assert problem_with(destination) is None
        assert decision is not None
        assert decision.url == "https://x.test"
        assert str(decision.tier) == destination.split()[0]


def test_a_place_without_a_relay_has_no_address(tmp_path: Path) -> None:
    """One that was announced can be found until it is taken back."""
    place = RelayPlace(tmp_path)
    assert place.address() is None
    assert not place.is_held()

    place.announce(Path("/first"))
    place.announce(Path("/second"))
    assert place.address() == Path("/second")
    place.retract(Path("/first"))  # which is somebody else's by now
    assert place.address() == Path("/second")
    place.retract(Path("/second"))
    place.retract(Path("/second"))
    assert place.address() is None


def test_one_at_a_time_is_the_relay(tmp_path: Path) -> None:
    """The lock's file goes with the lock, and the next one gets its own."""
    place = RelayPlace(tmp_path / "relay")
    first = place.lock()
    assert first is not None
    assert place.is_held()
    assert place.lock() is None
    first.release(remove=True)

    assert not place.is_held()
    second = place.lock()
    assert second is not None
    second.release(remove=True)
    assert list(place.directory.iterdir()) == []


def test_locks_of_the_dead_are_swept(tmp_path: Path) -> None:
    """Not those of the living, whoever they are."""
    place = RelayPlace(tmp_path / "relay")
    lock, starting = place.lock(), place.starting()
    assert lock is not None
    assert starting is not None
    (place.directory / "dead.lock").touch()

    place.sweep()

    assert {path.name for path in place.directory.iterdir()} == {"relay.lock", "start.lock"}
    lock.release(remove=True)
    starting.release(remove=True)


def test_the_last_problem_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """For who asks; whoever can read a log sees it there too."""
    silent, loud = Noted(is_silent=True), Noted(is_silent=False)
    for notes in (silent, loud):
        notes.warn("it is late")
        notes.warn("it is lost", where="there", count=2)
        notes.inform("it is fine")

    assert silent.problem == loud.problem == "it is lost (where: there, count: 2)"
    said = capsys.readouterr().err
    assert said.count("it is late") == said.count("it is lost") == 1
