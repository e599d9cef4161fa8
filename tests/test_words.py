"""What an endpoint says of a refusal becomes one line."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran import Answer, ErrorEvent, Settings, open_telemetry
from trimaran._pipeline.words import words_of
from trimaran.testing import ScriptedTransport

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "at", "index", "rejected"]) | st.text(),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ""),
        (b"no such\n project ", "no such project"),
        (b'"no such project"', "no such project"),
        (b'{"error": "no project", "at": "$.project"}', "no project (at $.project)"),
        (b'{"error": {"code": 3, "message": "no project"}}', "no project"),
        (b'{"detail": "no project"}', "no project"),
        (b'{"rejected": [{"index": 2, "reason": "no name"}, {"index": 4}]}', "event 2: no name"),
        (b'{"rejected": ["no name"]}', "no name"),
        (b'{"rejected": [], "message": "no name"}', "no name"),
        (b"{}", ""),
        (b"[1]", ""),
        (b" <html>no</html>", ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, "[" * 200),
        (b"the token sk-ant-api03-abcdefghijklmnopqrst is bad", "the token [masked:secret] is bad"),
    ],
)
def test_the_words_of_an_answer(body: bytes, words: str) -> None:
    """Of the usual forms; what is none of them has none, or is text."""
    assert words_of(body) == words


@given(st.binary(max_size=50) | JSON.map(msgspec.json.encode))
def test_an_answer_may_be_anything(body: bytes) -> None:
    """One line at most comes of it."""
    words = words_of(body)

    assert len(words) <= 200
    assert "\n" not in words


@pytest.mark.parametrize(
    ("answer", "name", "reason"),
    [
        (Answer(400, body=b'{"error": "no"}'), "telemetry rejected", "no"),
        (
            Answer(207, body=b'{"rejected": [{"index": 0, "reason": "no"}]}'),
            "telemetry partly rejected",
            "event 0: no",
        ),
        (Answer(400), "telemetry rejected", None),
    ],
)
async def test_a_refusal_is_told_with_its_reason(
    answer: Answer, name: str, reason: str | None
) -> None:
    """Where there is one."""
    problems: list[tuple[str, object]] = []
    async with (
        open_telemetry(
            "test",
            environ={"TEST_TELEMETRY_URL": "https://x.test"},
            transport=ScriptedTransport([answer]),
            settings=Settings(strict=True),
            on_problem=lambda p: problems.append((p.name, p.facts.get("reason"))),
        ) as telemetry,
        telemetry.session(announce=False) as session,
    ):
        session.track(ErrorEvent(error_name="E"))

    assert problems == [(name, reason)]
