from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._events import BUILT_IN_EVENTS, BuiltInEvent, tool_type_of

COUNTS = st.integers(min_value=0, max_value=1 << 53)
FIELDS = {
    # The origin's wire, field by field and in its order.
    "session_start": ["model_id", "provider_id", "agent", "project_id"],
    "session_end": ["total_cost", "total_tokens", "tool_call_count", "duration_ms"],
    "generation": [
        "message_id",
        "model_id",
        "provider_id",
        "agent",
        "finish_reason",
        "tokens",
        "cost",
        "duration_ms",
    ],
    "tool_call": [
        "tool_name",
        "message_id",
        "tool_type",
        "tool_category",
        "status",
        "duration_ms",
        "sequence_index",
        "previous_tool",
        "error",
    ],
    "bridge_call": ["method", "status", "duration_ms", "error"],
    "error": ["error_name", "error_message", "context"],
    "command": ["command_name", "command_source", "message_id"],
    "context_overflow_recovered": ["model_id", "provider_id", "tokens_used"],
    "compaction_triggered": ["trigger", "attempt"],
    "tool_outputs_pruned": ["count", "tokens_pruned"],
}
REQUIRED: dict[str, dict[str, Any]] = {
    "tool_call": {"tool_name": "bash"},
    "bridge_call": {"method": "sql.execute"},
    "error": {"error_name": "ValueError"},
    "command": {"command_name": "init"},
    "compaction_triggered": {"trigger": "overflow_detection"},
}


def encoded(event: trimaran.Event) -> dict[str, Any]:
    form: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    return form


def test_the_union_is_the_ten_of_the_wire() -> None:
    """The closed union and the table by name hold the same ten classes, and no other."""
    assert FIELDS.keys() == BUILT_IN_EVENTS.keys()
    assert set(get_args(BuiltInEvent)) == set(BUILT_IN_EVENTS.values())


@pytest.mark.parametrize("name", FIELDS)
def test_an_event_has_the_fields_of_the_wire(name: str) -> None:
    """Besides the stamps, a class has exactly the wire's fields, and its ``type`` is the name."""
    kind = BUILT_IN_EVENTS[name]

    assert ["timestamp", "session_id", *FIELDS[name]] == list(kind.__struct_fields__)
    assert encoded(kind(**REQUIRED.get(name, {})))["type"] == name


@pytest.mark.parametrize("name", FIELDS)
def test_an_event_can_be_read_back(name: str) -> None:
    """The union is decoded by ``type``: what is encoded comes back equal, as its own class."""
    event = BUILT_IN_EVENTS[name](timestamp=1, session_id="s", **REQUIRED.get(name, {}))

    read: object = msgspec.json.decode(msgspec.json.encode(event), type=BuiltInEvent)

    assert event == read
    assert type(event) is type(read)


@pytest.mark.parametrize("name", FIELDS)
def test_stamps_are_left_out_until_they_are_given(name: str) -> None:
    """An event that nobody stamped has neither stamp in its JSON form."""
    form = encoded(BUILT_IN_EVENTS[name](**REQUIRED.get(name, {})))

    assert not {"timestamp", "session_id"} & form.keys()


def test_only_starts_ends_and_errors_are_urgent() -> None:
    """What must not wait is named in the design; all else shares a batch."""
    urgent = {name for name, kind in BUILT_IN_EVENTS.items() if kind.urgent}

    assert urgent == {"session_start", "session_end", "error"}


def test_only_error_texts_are_cut() -> None:
    """The wire bounds error texts, and nothing else is shortened."""
    cut = {name: kind.cut_fields for name, kind in BUILT_IN_EVENTS.items() if kind.cut_fields}

    assert cut == {
        "tool_call": ("error",),
        "bridge_call": ("error",),
        "error": ("error_message",),
    }


def test_events_are_frozen() -> None:
    """An event that was handed over cannot be changed behind the pipeline's back."""
    event: Any = trimaran.Command(command_name="init")

    with pytest.raises(AttributeError):
        event.command_name = "other"


def test_fields_are_keywords_only() -> None:
    """The order of fields is no part of the contract."""
    make: Any = trimaran.Command

    with pytest.raises(TypeError):
        make("init")


def test_making_an_event_never_raises_for_content() -> None:
    """Nothing is validated when an event is made: the pipeline deals with what is odd."""
    make: Any = trimaran.ToolCall

    assert make(tool_name=b"\xff", duration_ms=[]).tool_name == b"\xff"


@pytest.mark.parametrize(
    ("class_name", "wire_name"),
    [
        ("Deploy", "deploy"),
        ("DeployStarted", "deploy_started"),
        ("MCPCall", "mcp_call"),
        ("UsedHTTP2Now", "used_http2_now"),
        ("already_snake", "already_snake"),
    ],
)
def test_a_hosts_class_is_named_in_snake_case(class_name: str, wire_name: str) -> None:
    """``type`` is the class's name in snake case, acronyms kept together."""
    kind: Any = msgspec.defstruct(class_name, [], bases=(trimaran.Event,), frozen=True)

    assert encoded(kind())["type"] == wire_name


def test_the_place_of_a_class_is_no_part_of_its_name() -> None:
    """A class inside another or inside a function has the same ``type`` as one at the top."""

    class Outer:
        class DeployStarted(trimaran.Event, frozen=True):
            pass

    assert encoded(Outer.DeployStarted()) == {"type": "deploy_started"}


def test_a_host_can_name_its_event_itself() -> None:
    """``tag=`` gives the ``type``, and the class may be urgent and have texts to cut."""

    class Deploy(trimaran.Event, frozen=True, tag="deployment"):
        target: str
        urgent: ClassVar[bool] = True

    assert encoded(Deploy(target="prod")) == {"type": "deployment", "target": "prod"}
    assert Deploy.urgent
    assert not trimaran.Event.urgent


@pytest.mark.parametrize(
    ("tool_name", "tool_type"),
    [
        ("bash", "standard"),
        ("mcp__github__search", "mcp"),
        ("mcp_", "standard"),
        ("MCP__x", "standard"),
        ("", "standard"),
        (None, "standard"),
        (b"mcp__x", "standard"),
    ],
)
def test_mcp_tools_are_known_by_their_prefix(tool_name: object, tool_type: str) -> None:
    """``mcp__`` at the beginning is what makes a tool an MCP tool."""
    assert tool_type_of(tool_name) == tool_type


def test_the_code_of_a_tools_name_is_not_run() -> None:
    """A text of a class of its own is judged by its characters, not by its methods."""

    class Name(str):
        __slots__ = ()

        def startswith(self, *_arguments: object) -> bool:
            raise RuntimeError

    assert tool_type_of(Name("mcp__x")) == "mcp"


@given(input=COUNTS, output=COUNTS, reasoning=COUNTS, cache_read=COUNTS, cache_write=COUNTS)
def test_the_parts_of_tokens_do_not_overlap(**counts: int) -> None:
    """The total is the plain sum, and the inclusive counts of OpenTelemetry add up to it."""
    tokens = trimaran.Tokens(**counts)

    assert tokens.total == sum(counts.values())
    assert tokens.input_total + tokens.output_total == tokens.total
    assert tokens.input_total - tokens.input == tokens.cache_read + tokens.cache_write
    assert tokens.output_total - tokens.output == tokens.reasoning


def test_tokens_go_out_as_the_wires_five_counts() -> None:
    """The inclusive counts are computed and never sent."""
    assert msgspec.to_builtins(trimaran.Tokens(input=1, cache_write=2)) == {
        "input": 1,
        "output": 0,
        "reasoning": 0,
        "cache_read": 0,
        "cache_write": 2,
    }


def test_anthropic_usage() -> None:
    """Anthropic's input excludes what a cache gave, so it is taken as it is."""
    usage = {
        "input_tokens": 100,
        "output_tokens": 50,
        "cache_read_input_tokens": 2000,
        "cache_creation_input_tokens": 300,
    }

    assert trimaran.Tokens.from_anthropic(usage) == trimaran.Tokens(
        input=100, output=50, cache_read=2000, cache_write=300
    )


@pytest.mark.parametrize(
    "usage",
    [
        {
            "prompt_tokens": 1000,
            "completion_tokens": 300,
            "prompt_tokens_details": {"cached_tokens": 800},
            "completion_tokens_details": {"reasoning_tokens": 250},
        },
        {
            "input_tokens": 1000,
            "output_tokens": 300,
            "input_tokens_details": {"cached_tokens": 800},
            "output_tokens_details": {"reasoning_tokens": 250},
        },
    ],
    ids=["chat completions", "responses"],
)
def test_openai_usage(usage: dict[str, Any]) -> None:
    """OpenAI's counts include cached and reasoning tokens; both APIs give the same five parts."""
    tokens = trimaran.Tokens.from_openai(usage)

    assert tokens == trimaran.Tokens(input=200, output=50, reasoning=250, cache_read=800)
    assert (tokens.input_total, tokens.output_total) == (1000, 300)


def test_openai_usage_without_details() -> None:
    """Older models give the two totals alone, and servers that mimic the API give null."""
    expected = trimaran.Tokens(input=10, output=5)

    assert trimaran.Tokens.from_openai({"prompt_tokens": 10, "completion_tokens": 5}) == expected
    assert expected == trimaran.Tokens.from_openai(
        {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None}
    )


@pytest.mark.parametrize(
    "usage",
    [
        {
            "prompt_token_count": 1000,
            "cached_content_token_count": 600,
            "candidates_token_count": 70,
            "thoughts_token_count": 30,
            "tool_use_prompt_token_count": 25,
        },
        {
            "promptTokenCount": 1000,
            "cachedContentTokenCount": 600,
            "candidatesTokenCount": 70,
            "thoughtsTokenCount": 30,
            "toolUsePromptTokenCount": 25,
        },
    ],
    ids=["snake case", "camel case"],
)
def test_google_usage(usage: dict[str, Any]) -> None:
    """Google's prompt includes cached content; the prompts of its tools and thoughts come on top."""
    tokens = trimaran.Tokens.from_google(usage)

    assert tokens == trimaran.Tokens(input=425, output=70, reasoning=30, cache_read=600)
    assert tokens.total == 1000 + 25 + 70 + 30


def test_usage_may_be_an_object() -> None:
    """The providers' own clients give objects, nested ones too."""
    usage = SimpleNamespace(
        prompt_tokens=10,
        completion_tokens=5,
        prompt_tokens_details=SimpleNamespace(cached_tokens=4),
        completion_tokens_details=None,
    )

    assert trimaran.Tokens.from_openai(usage) == trimaran.Tokens(input=6, output=5, cache_read=4)


CONSTRUCTORS = [
    trimaran.Tokens.from_anthropic,
    trimaran.Tokens.from_openai,
    trimaran.Tokens.from_google,
]
PROVIDERS_FIELDS = [
    "input_tokens",
    "output_tokens",
    "prompt_tokens",
    "completion_tokens",
    "prompt_token_count",
    "cached_content_token_count",
    "prompt_tokens_details",
]


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@pytest.mark.parametrize("usage", [None, {}, object(), "text", 7])
def test_usage_that_is_none_counts_nothing(constructor: Any, usage: object) -> None:
    """A call that failed has no usage, and to say so is not an error."""
    assert constructor(usage) == trimaran.Tokens()


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@given(
    usage=st.dictionaries(
        st.sampled_from(PROVIDERS_FIELDS),
        st.integers() | st.none() | st.text() | st.dictionaries(st.just("cached_tokens"), COUNTS),
    )
)
def test_no_usage_gives_a_negative_count(constructor: Any, usage: dict[str, object]) -> None:
    """Whatever a provider says, nothing raises and no part is below zero."""
    tokens = constructor(usage)

    assert min(msgspec.structs.astuple(tokens)) >= 0
