"""What the receiver says of itself to other programs: a document in OpenAPI 3.1.

In: the types that are taken and answered, and what a receiver was started with.
Out: one value, to be encoded as JSON.
Does not know: requests, routes, the store.

The schemas are made from the types that the receiver itself reads and writes with, so
that they are right by construction; the rest is held against a running receiver by
the tests.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from trimaran._events import BUILT_IN_EVENTS
from trimaran._version import __version__
from trimaran.receiver import answers, limits
from trimaran.receiver.encoding import ACCEPTED
from trimaran.receiver.wire import EVENTS, PARENT_HEADER, Envelope, Head

__all__ = ["describe"]

_Object: TypeAlias = Mapping[str, Any]  # of JSON, whatever is in it

_ABOUT = """\
Takes batches of events from agents' sessions, keeps them, and gives them back.

Wherever GET is answered, HEAD is too. A receiver on a loopback address answers only to
`localhost`, to names under it and to numbers. A request that is not HTTP, or has a head
of more than 16 KiB, gets an answer without a body.
"""

_INGEST = """\
Stores the events that are good, and names those that are not. The answer is given once
they are on disk.
"""

_BODY = """\
At most {} bytes, as it comes and when it is decompressed. Its `Content-Encoding` may be
{}, or both. Each event has the `session_id` of the batch or none, and is nested at most
64 levels deep. Where an integer is asked for, `1.0` is none.
"""

_KEY = """\
Makes it safe to send a batch again: in each session the first batch of a key is stored,
and all others of that key get its answer.
"""

_PARENT = """\
The id of the session that this one works for as a sub-agent, in UTF-8, percent-encoded where
a header or an address could not carry it. The last one that is named counts. What cannot be
the id of another session names none.
"""

_EXAMPLE: _Object = {
    "session_id": "ses_1",
    "cli_version": "0.5.7",
    "user_email": "",
    "project_id": "p",
    "timestamp": 1_762_000_000_000,
    "events": [
        {
            "type": "tool_call",
            "timestamp": 1_761_999_999_000,
            "session_id": "ses_1",
            "tool_name": "bash",
            "status": "success",
            "duration_ms": 35,
        },
        {"type": "deploy", "timestamp": 1_761_999_999_500, "target": "staging"},
    ],
}

_REFUSALS: Mapping[int, str] = {
    400: "Not what can be understood",
    401: "A token is needed, and none came that is known",
    404: "There is no session of this id",
    408: f"The body was not there after {limits.READ_TIMEOUT:g} s",
    413: "The body is too large, or has too many events",
    415: "The body is not said to be JSON, or is encoded in a way that is not known",
    421: "Asked for under a name that is not of this machine",
    500: "A bug of the receiver",
    503: "The store is not available. Nothing was done, and it can be asked for again",
}

_HEADERS: Mapping[int, _Object] = {
    401: {
        "WWW-Authenticate": {
            "description": "How to send one",
            "required": True,
            "schema": {"type": "string"},
        }
    },
    415: {
        "Accept-Encoding": {
            "description": "What is known, where it is the encoding that is not",
            "schema": {"const": ACCEPTED},
        }
    },
    503: {
        "Retry-After": {
            "description": "Seconds to wait before",
            "required": True,
            "schema": {"type": "integer", "minimum": 1},
        }
    },
}


def describe(*, max_body: int, tokens: bool) -> _Object:
    """The document of a receiver that takes bodies of *max_body* bytes.

    *tokens* says whether it was given some, and lets nobody in without one.
    """
    bearer: _Object = {"token": []}
    basic: _Object = {"password": []}
    sessions_after = _query("after", "`next` of the page before", {})
    events_after = _query("after", "How many events to leave out", {"default": 0})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trimaran receiver",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [bearer, basic] if tokens else [],
        "paths": {
            "/api/observability/ingest": {
                "post": {**_ingest(max_body), "security": [bearer] if tokens else []}
            },
            "/api/sessions": {
                "get": {
                    "operationId": "sessions",
                    "summary": "Sessions, the newest first, page by page",
                    "parameters": [sessions_after, _limit(limits.SESSIONS_PAGE), _parent()],
                    "responses": {
                        "200": _json("Some sessions", "Sessions"),
                        **_refusals(400, 401, 421, 500, 503),
                    },
                }
            },
            "/api/sessions/{id}": {
                "get": {
                    "operationId": "session",
                    "summary": "One session",
                    "parameters": [_id()],
                    "responses": {
                        "200": _json("The session", "Session"),
                        **_refusals(401, 404, 421, 500, 503),
                    },
                }
            },
            "/api/sessions/{id}/events": {
                "get": {
                    "operationId": "events",
                    "summary": "The events of a session in the order of arrival, page by page",
                    "description": "A page also ends where it would be more than"
                    f" {limits.MAX_PAGE_BYTES} bytes.",
                    "parameters": [_id(), events_after, _limit(limits.EVENTS_PAGE)],
                    "responses": {
                        "200": _json("Some events", "Events"),
                        **_refusals(400, 401, 404, 421, 500, 503),
                    },
                }
            },
            "/": {
                "get": {
                    "operationId": "sessionsPage",
                    "summary": "The sessions for a person to read",
                    "parameters": [sessions_after],
                    "responses": {
                        "200": _html("A page"),
                        **_refusals(400, 401, 421, 500, 503, in_html=True),
                    },
                }
            },
            "/sessions/{id}": {
                "get": {
                    "operationId": "sessionPage",
                    "summary": "A session for a person to read",
                    "parameters": [_id(), events_after],
                    "responses": {
                        "200": _html("A page"),
                        **_refusals(400, 401, 404, 421, 500, 503, in_html=True),
                    },
                }
            },
            "/healthz": {
                "get": {
                    "operationId": "health",
                    "summary": "Whether the store can be read",
                    "security": [],
                    "responses": {"200": _json("It can", "Health"), **_refusals(500, 503)},
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "description",
                    "summary": "This document",
                    "responses": {
                        "200": {
                            "description": "OpenAPI 3.1",
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        },
                        **_refusals(401, 421, 500),
                    },
                }
            },
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The token as password, under any name.",
                },
            },
        },
    }


def _ingest(max_body: int) -> _Object:
    key = {"type": "string", "minLength": 1, "maxLength": limits.MAX_KEY}
    taken = {
        "headers": {
            "Idempotent-Replayed": {
                "description": "There if the batch had been stored before",
                "schema": {"const": "true"},
            }
        },
        "links": {
            name: {"operationId": name, "parameters": {"id": "$request.body#/session_id"}}
            for name in ("session", "events", "sessionPage")
        },
    }
    return {
        "operationId": "ingest",
        "summary": "Take a batch of events",
        "description": _INGEST,
        "parameters": [
            {"name": "Idempotency-Key", "in": "header", "description": _KEY, "schema": key},
            {
                "name": PARENT_HEADER,
                "in": "header",
                "description": _PARENT,
                "schema": {"type": "string"},
            },
        ],
        "requestBody": {
            "description": _BODY.format(max_body, ACCEPTED),
            "required": True,
            "content": {"application/json": {"schema": _ref("Batch"), "example": _EXAMPLE}},
        },
        "responses": {
            "200": {**_json("All events are stored", "Taken"), **taken},
            "207": {**_json("Some events are rejected, the others stored", "Taken"), **taken},
            **_refusals(400, 401, 408, 413, 415, 421, 500, 503),
        },
    }


def _id() -> _Object:
    schema = {"type": "string", "minLength": 1}
    return {"name": "id", "in": "path", "required": True, "schema": schema}


def _parent() -> _Object:
    description = "Only the sub-agents of the session of this id"
    schema = {"type": "string"}
    return {"name": "parent", "in": "query", "description": description, "schema": schema}


def _query(name: str, description: str, schema: _Object) -> _Object:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": "integer", **schema},
    }


def _limit(default: int) -> _Object:
    description = f"How many; more than {limits.MAX_PAGE} means {limits.MAX_PAGE}"
    return _query("limit", description, {"default": default})


def _ref(name: str) -> _Object:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: str) -> _Object:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _html(description: str) -> _Object:
    return {"description": description, "content": {"text/html": {"schema": {"type": "string"}}}}


def _refusals(*statuses: int, in_html: bool = False) -> _Object:
    return {
        str(status): {
            **(_html(_REFUSALS[status]) if in_html else _json(_REFUSALS[status], "Problem")),
            "headers": _HEADERS.get(status, {}),
        }
        for status in statuses
    }


def _schemas() -> _Object:
    answered = (answers.Taken, answers.Problem, answers.Health, answers.Sessions, answers.Events)
    _, schemas = msgspec.json.schema_components(
        (Envelope, Head, *EVENTS.values(), *answered),
        ref_template="#/components/schemas/{name}",
    )
    known: list[_Object] = []
    for name, event_class in EVENTS.items():
        summary = (BUILT_IN_EVENTS[name].__doc__ or "").partition("\n")[0]
        schemas[event_class.__name__]["description"] = summary
        known.append(_ref(event_class.__name__))
    batch, other = schemas.pop("Envelope"), schemas.pop("Head")
    batch["properties"]["events"] |= {"items": _ref("Event"), "maxItems": limits.MAX_EVENTS}
    other["properties"]["type"]["not"] = {"enum": list(EVENTS)}
    return {
        **schemas,
        "Batch": {**batch, "title": "Batch"},
        "Event": {"oneOf": [*known, _ref("OtherEvent")]},
        "OtherEvent": {
            **other,
            "title": "OtherEvent",
            "description": "An event of the host's own, with any fields.",
        },
    }
