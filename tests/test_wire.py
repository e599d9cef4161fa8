import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trimaran import Command
from trimaran._pipeline.encoder import encode
from trimaran._pipeline.entry import MOST_MILLISECONDS
from trimaran._pipeline.wire import (
    LONGEST_ID,
    Context,
    Stamper,
    body,
    endpoint_url,
    halves,
    parent_headers,
    refused_indexes,
    session_id_of,
    stamped,
)
from trimaran.receiver.wire import parent_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
STAMPS = st.integers(0, 1 << 53)
EVENTS = st.lists(st.binary(max_size=20).map(lambda data: msgspec.json.encode({"data": data})))


@pytest.mark.parametrize(
    "base",
    ["https://collect.example", "https://collect.example/", "https://collect.example//"],
)
def test_batches_are_posted_to_the_ingest_path(base: str) -> None:
    """Whether or not the base ends in a slash."""
    assert endpoint_url(base) == "https://collect.example/api/observability/ingest"


def test_the_ingest_path_goes_below_a_base_path() -> None:
    """An endpoint may live behind a gateway."""
    expected = "https://collect.example/telemetry/api/observability/ingest"

    assert endpoint_url("https://collect.example/telemetry/") == expected


def test_a_stamped_event_reads_as_the_wire_wants_it() -> None:
    """The stamps come first, and ``type`` and the event's own fields follow."""
    line = stamped(
        encode(Command(command_name="init")), timestamp=1_800_000_000_123, session_id_json=b'"s1"'
    )

    assert line == (
        b'{"timestamp":1800000000123,"session_id":"s1","type":"command",'
        b'"command_name":"init","command_source":"unknown","message_id":""}'
    )


def test_a_body_reads_as_the_wire_wants_it() -> None:
    """All keys of the origin, in its order, and nothing else."""
    context = Context(
        session_id="s1", cli_version="0.5.7", user_email="ada@example.org", project_id="p"
    )

    assert body(context, [b'{"a":1}', b'{"b":2}'], timestamp=1_800_000_000_123) == (
        b'{"session_id":"s1","cli_version":"0.5.7","user_email":"ada@example.org",'
        b'"project_id":"p","timestamp":1800000000123,"events":[{"a":1},{"b":2}]}'
    )


@given(
    context=st.builds(Context, session_id=TEXT, cli_version=TEXT, user_email=TEXT, project_id=TEXT),
    timestamp=STAMPS,
    events=EVENTS,
)
def test_any_body_is_json(context: Context, timestamp: int, events: list[bytes]) -> None:
    """Whatever the host's words are, they come out as they went in, with any number of events."""
    assert msgspec.json.decode(body(context, events, timestamp=timestamp)) == {
        **msgspec.structs.asdict(context),
        "timestamp": timestamp,
        "events": [msgspec.json.decode(event) for event in events],
    }


@given(
    context=st.builds(Context, session_id=TEXT, project_id=TEXT),
    timestamp=STAMPS,
    events=EVENTS,
)
def test_a_body_is_halved_to_the_byte(
    context: Context, timestamp: int, events: list[bytes]
) -> None:
    """Each half is what a body of those events alone would have been."""
    middle = len(events) // 2

    assert halves(body(context, events, timestamp=timestamp)) == (
        body(context, events[:middle], timestamp=timestamp),
        body(context, events[middle:], timestamp=timestamp),
    )


@given(session_id=TEXT, timestamp=STAMPS, fields=st.dictionaries(TEXT, TEXT, min_size=1))
def test_any_stamped_event_is_json(session_id: str, timestamp: int, fields: dict[str, str]) -> None:
    """A session's id may be any text."""
    line = stamped(
        msgspec.json.encode(fields),
        timestamp=timestamp,
        session_id_json=msgspec.json.encode(session_id),
    )

    assert msgspec.json.decode(line) == {
        "timestamp": timestamp,
        "session_id": session_id,
        **fields,
    }


@given(milliseconds=st.lists(st.integers(0, MOST_MILLISECONDS - 1) | st.integers(0, 3)))
@example([1001])  # 1.001 * 1000 is below it
def test_a_time_in_seconds_is_stamped_to_the_millisecond(milliseconds: list[int]) -> None:
    """No millisecond is lost on the way through seconds; what is kept in between is right."""
    stamper = Stamper(b'"s1"')

    for millisecond in milliseconds:
        assert stamper.stamped(b'{"a":1}', millisecond / 1000) == stamped(
            b'{"a":1}', timestamp=millisecond, session_id_json=b'"s1"'
        )


@given(refused=st.lists(st.integers(-5, 15)), count=st.integers(0, 10))
def test_refused_events_are_named_by_their_place(refused: list[int], count: int) -> None:
    """Each counts once, however often it is named; a place outside of the batch is none."""
    answer = msgspec.json.encode(
        {
            "accepted": 7,
            "rejected": [{"index": index, "reason": "no such type"} for index in refused],
        }
    )

    assert refused_indexes(answer, count=count) == set(refused) & set(range(count))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"OK",
        b"<html>",
        b"\xff\xfe",
        b'{"rejected":null}',
        b'{"rejected":3}',
        b'{"rejected":[1,2]}',
        b'{"rejected":[{"index":"0"}]}',
        b'{"rejected":[{"index":0.5}]}',
        b'{"rejected":[{"reason":"no index"}]}',
        b'{"rejected":[{"index":1',  # cut off at the bound on answers
        b'{"rejected":[{"index":1e999}]}',
        b'{"x":' + b"[" * 65_000,
        b'{"rejected":[{"index":0,"x":' + b'{"x":' * 12_000,
    ],
)
def test_an_answer_that_cannot_be_read_refuses_none(answer: bytes) -> None:
    """The endpoint did say success; whatever it says besides, nothing raises."""
    assert refused_indexes(answer, count=10) == frozenset()


@given(answer=st.binary())
def test_no_answer_breaks_it(answer: bytes) -> None:
    """It comes from outside, so it may be anything."""
    assert refused_indexes(answer, count=10) <= set(range(10))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=600))
@example("a\nb")
@example("x" * (LONGEST_ID + 1))
def test_any_text_can_name_a_session(text: str) -> None:
    """For a receiver, which says here of a parent whether its session can be called that."""
    name = session_id_of(text)
    [header] = parent_headers(name).values()

    assert parent_of(header) == name
    assert session_id_of(name) == name
    assert name == text or parent_of(*parent_headers(text).values()) is None


def test_sessions_stay_apart_whose_names_are_changed() -> None:
    """And one that is opened again has the same name again."""
    texts = ["a\nb", "a\tb", "a_b", "x" * 257, "x" * 258, "x" * 256 + "\n", "x" * 256]
    names = [session_id_of(text) for text in texts]

    assert len({*names}) == len(texts)
    assert names == [session_id_of(text) for text in texts]
    assert names[2] == "a_b"
    assert names[-1] == "x" * 256
    assert all(len(name) <= LONGEST_ID for name in names)
