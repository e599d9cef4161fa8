"""How a request is written down, and its answer read: as protobuf or as JSON.

In: the name of an encoding. Out: its form, or why there is none.
Does not know: spans, HTTP. Only the form that is asked for is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol, TypeAlias

from trimaran.otlp.conventions import Attribute
from trimaran.otlp.environment import Encoding
from trimaran.otlp.spans import Span

__all__ = ["Form", "Partial", "form_of", "problem_with_form"]

Partial: TypeAlias = tuple[int, str]
"""How many items an endpoint refused of a request that it took, and its message."""


class Form(Protocol):
    """Writes requests, reads answers; of what is no answer it says that it says nothing."""

    def traces(
        self, resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]
    ) -> bytes:
        """An ExportTraceServiceRequest; *scope* is a name, its version and the mapping's."""
        ...

    def logs(
        self, resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]
    ) -> bytes:
        """An ExportLogsServiceRequest, with a record for what each span was made of."""
        ...

    def partial_success(self, answer: bytes) -> Partial:
        """What the answer to a request that was taken says: nothing, in most cases."""
        ...

    def message_of_status(self, answer: bytes) -> str:
        """The message of a ``google.rpc.Status``, which says why a request was not taken."""
        ...


def form_of(encoding: Encoding) -> Form:
    """The form of that name. What protobuf needs takes a tenth of a second to import.

    Raises:
        ModuleNotFoundError: see :func:`problem_with_form`.
    """
    if encoding == "json":
        from trimaran.otlp import json_form  # noqa: PLC0415 - see the head

        return json_form
    from trimaran.otlp.protobuf import Protobuf  # noqa: PLC0415 - see the head

    return Protobuf()


def problem_with_form(encoding: Encoding) -> str | None:
    """What is missing for it, and what to do; None for nothing. Nothing is imported for it."""
    if encoding == "json" or _is_there("opentelemetry.proto"):
        return None
    return (
        "OTLP as protobuf needs the extra 'otlp' (opentelemetry-proto is not there); "
        "run: pip install 'trimaran[otlp]'"
    )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor is what it is in
        return False
