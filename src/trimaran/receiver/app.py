"""The receiver over HTTP: what is taken, what is answered, and to whom.

In: a store, the tokens that are let in, the limits.
Out: an ASGI application.
Does not know: sockets, how a batch is validated or stored, how a page looks.

====================================  =================================================
``POST /api/observability/ingest``    a batch of events
``GET /api/sessions``                 sessions as JSON, the newest first, page by page;
                                      with ``?parent=`` the sub-agents of one
``GET /api/sessions/{id}``            one of them
``GET /api/sessions/{id}/events``     its events in the order of arrival, page by page
``GET /``, ``GET /sessions/{id}``     the same for a person to read
``GET /healthz``                      200 if the store can be read
``GET /openapi.json``                 all of this for other programs, as OpenAPI
====================================  =================================================

An error is answered in JSON too, to a person it is a page.

With tokens set, everything but ``/healthz`` needs one of them. A post carries it as
Bearer. For reading it may also be the password of Basic authentication, which is what
a browser asks a person for.
"""

import time
from collections.abc import Callable, Mapping
from urllib.parse import unquote

import msgspec
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trimaran._diagnostics import Diagnostics
from trimaran.receiver import openapi
from trimaran.receiver.access import knows_token, names_local_host
from trimaran.receiver.answers import Events, Health, Problem, Sessions, Taken, session_of
from trimaran.receiver.encoding import (
    ACCEPTED,
    BodyTooLarge,
    BrokenEncoding,
    UnknownEncoding,
    decompress,
)
from trimaran.receiver.ingest import BadBody, TooManyEvents, parse
from trimaran.receiver.limits import (
    EVENTS_PAGE,
    MAX_BODY,
    MAX_CURSOR,
    MAX_DISCARD,
    MAX_KEY,
    MAX_PAGE,
    READ_TIMEOUT,
    RETRY_AFTER,
    SESSIONS_PAGE,
)
from trimaran.receiver.pages import PAGE, Pages
from trimaran.receiver.store import Keeper, Store, StoreUnavailable
from trimaran.receiver.values import StoredSession
from trimaran.receiver.wire import PARENT_HEADER, parent_of

__all__ = ["MAX_BODY", "create_app", "create_forwarding_app"]

_MAX_POSTS = 256  # bodies in memory at the same time; more wait, unread
_BEARER = 'Bearer realm="trimaran"'
_BASIC = 'Basic realm="trimaran (the token is the password)", charset="UTF-8"'


def create_app(
    store: Store,
    *,
    tokens: frozenset[str] = frozenset(),
    max_body: int = MAX_BODY,
    local_only: bool = False,
    clock: Callable[[], float] = time.time,
) -> Starlette:
    """The receiver as an ASGI application, to be run on trio.

    Args:
        store: Where batches go, and sessions are read from.
        tokens: Who may post and read; everybody if there are none.
        max_body: Bytes of a body, as it comes and when it is decompressed.
        local_only: Answer only under the names that a program on this machine uses, see
            ``access.names_local_host``.
        clock: Gives the seconds since the epoch; pages say how long ago things were.
    """
    guard = _Guard(tokens, local_only=local_only)
    pages = Pages()
    posting = _Posting(store, guard, max_body)
    reading = _Reading(store, guard, openapi.describe(max_body=max_body, tokens=bool(tokens)))
    person = _PersonReading(store, guard, pages, clock)
    refusal = _Refusal(pages, Diagnostics(trio.current_time))
    return _application(
        refusal,
        [
            Route("/api/observability/ingest", posting.ingest, methods=["POST"]),
            Route("/api/sessions", reading.sessions),
            # The id is the sender's, and may have slashes in it, whether encoded or not.
            Route("/api/sessions/{id:path}/events", reading.events),
            Route("/api/sessions/{id:path}", reading.session),
            Route("/healthz", posting.health),
            Route("/openapi.json", reading.itself),
            Route("/", person.sessions),
            Route("/sessions/{id:path}", person.session),
        ],
    )


def create_forwarding_app(
    keeper: Keeper,
    *,
    tokens: frozenset[str] = frozenset(),
    max_body: int = MAX_BODY,
    local_only: bool = False,
) -> Starlette:
    """The part of a receiver that takes, for one that has nothing to show.

    Args:
        keeper: where batches go.
        tokens: as of :func:`create_app`, like the others.
        max_body: bytes.
        local_only: see there.
    """
    guard = _Guard(tokens, local_only=local_only)
    posting = _Posting(keeper, guard, max_body)
    refusal = _Refusal(Pages(), Diagnostics(trio.current_time))
    return _application(
        refusal,
        [
            Route("/api/observability/ingest", posting.ingest, methods=["POST"]),
            Route("/healthz", posting.health),
            Route("/{path:path}", _forwards_all),
        ],
    )


async def _forwards_all(_request: Request) -> Response:
    """Say that there is nothing to see; not a checkpoint."""
    raise HTTPException(404, "This receiver passes on what it takes, and has nothing to show")


def _application(refusal: "_Refusal", routes: list[Route]) -> Starlette:
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_ByEncodedPath)],
        exception_handlers=dict.fromkeys(_REFUSED, refusal.answer),
    )
    app.router.redirect_slashes = False
    return app


class _ByEncodedPath:
    """Has routes chosen by the path as it came, with what is encoded in it still encoded.

    The events of the session ``a`` and the session ``a/events`` are told apart by that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("ascii")
        await self._app({**scope, "path": path}, receive, send)


class _Guard:
    """Decides who is let in."""

    def __init__(self, tokens: frozenset[str], *, local_only: bool) -> None:
        self._tokens = tokens
        self._local_only = local_only

    def admit(self, request: Request, *, basic: bool) -> None:
        """Let *request* pass, or raise the answer that says why not."""
        if self._local_only and not names_local_host(request.headers.get("host", "")):
            raise HTTPException(421, "On this machine the receiver is called localhost")
        authorization = request.headers.get("authorization", "")
        if not knows_token(authorization, self._tokens, basic=basic):
            raise HTTPException(
                401,
                "This receiver needs a token that it knows",
                {"www-authenticate": _BASIC if _is_for_a_person(request) else _BEARER},
            )


class _Posting:
    """Takes batches."""

    def __init__(self, keeper: Keeper, guard: _Guard, max_body: int) -> None:
        self._keeper = keeper
        self._guard = guard
        self._max_body = max_body
        self._room = trio.CapacityLimiter(_MAX_POSTS)

    async def ingest(self, request: Request) -> Response:
        """Store the good events of a batch, and say which were not good."""
        async with self._room:
            # Nothing is refused before the body has come in: a client that still
            # writes does not read, and may lose an answer that closes the connection.
            body = await self._body(request)
            self._guard.admit(request, basic=False)
            if _media_type(request) != "application/json":
                # Also keeps the pages of the web out: this is a type that a browser
                # does not post to other sites without asking them first.
                raise HTTPException(415, "The Content-Type must be application/json")
            key = request.headers.get("idempotency-key")
            if key is not None and not 0 < len(key) <= MAX_KEY:
                raise HTTPException(400, f"An Idempotency-Key has 1 to {MAX_KEY} characters")
            encoding = request.headers.get("content-encoding", "")
            batch = parse(decompress(body, encoding, self._max_body))
            parent = parent_of(request.headers.get(PARENT_HEADER, ""))
            receipt = await self._keeper.append(batch, key, parent=parent)
        return _json(
            Taken(receipt.accepted, receipt.rejected),
            status=207 if receipt.rejected else 200,
            headers={"idempotent-replayed": "true"} if receipt.duplicate else {},
        )

    async def health(self, _request: Request) -> Response:
        """Say that all is well, unless nothing can be kept. Needs no token."""
        await self._keeper.check()
        return _json(Health("ok"))

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        size = 0
        with trio.move_on_after(READ_TIMEOUT):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                size += len(chunk)
                if size <= self._max_body:
                    body += chunk
                if size > self._max_body + MAX_DISCARD or not message.get("more_body", False):
                    break
            if size > self._max_body:
                raise BodyTooLarge(self._max_body)
            return bytes(body)
        raise HTTPException(408, f"The body was not there after {READ_TIMEOUT:g} s")


class _Reading:
    """Gives back what was stored, as JSON."""

    def __init__(self, store: Store, guard: _Guard, description: object) -> None:
        self._store = store
        self._guard = guard
        self._description = msgspec.Raw(msgspec.json.encode(description))

    async def itself(self, request: Request) -> Response:
        """What can be asked for and posted here."""
        self._guard.admit(request, basic=True)
        return _json(self._description)

    async def sessions(self, request: Request) -> Response:
        """Some sessions, the newest first."""
        self._guard.admit(request, basic=True)
        page = await self._store.sessions(
            before=_number(request, "after", default=MAX_CURSOR, least=0, most=MAX_CURSOR),
            limit=_number(request, "limit", default=SESSIONS_PAGE, least=1, most=MAX_PAGE),
            parent=request.query_params.get("parent"),
        )
        return _json(Sessions(tuple(map(session_of, page.sessions)), page.next))

    async def session(self, request: Request) -> Response:
        """One session."""
        self._guard.admit(request, basic=True)
        return _json(session_of(await _find(self._store, request)))

    async def events(self, request: Request) -> Response:
        """Some events of one session, in the order of arrival."""
        self._guard.admit(request, basic=True)
        page = await self._store.events(
            await _find(self._store, request),
            first=_number(request, "after", default=0, least=0, most=MAX_CURSOR),
            limit=_number(request, "limit", default=EVENTS_PAGE, least=1, most=MAX_PAGE),
        )
        return _json(Events(page.events, page.next))


class _PersonReading:
    """Gives back what was stored, as pages."""

    def __init__(
        self, store: Store, guard: _Guard, pages: Pages, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._guard = guard
        self._pages = pages
        self._clock = clock

    async def sessions(self, request: Request) -> Response:
        """The page of all sessions."""
        self._guard.admit(request, basic=True)
        before = _number(request, "after", default=MAX_CURSOR, least=0, most=MAX_CURSOR)
        page = await self._store.sessions(before=before)
        html = self._pages.sessions(
            page,
            address=request.url.netloc,
            newest=before == MAX_CURSOR,
            now=self._now(),
        )
        return Response(html, headers=self._pages.headers)

    async def session(self, request: Request) -> Response:
        """The page of one session."""
        self._guard.admit(request, basic=True)
        session = await _find(self._store, request)
        first = _number(request, "after", default=0, least=0, most=MAX_CURSOR)
        page = await self._store.events(session, first=first, limit=PAGE)
        family = await self._store.family(session)
        html = self._pages.session(session, page, family, now=self._now())
        return Response(html, headers=self._pages.headers)

    def _now(self) -> int:
        return int(self._clock() * 1000)


class _Refusal:
    """Answers a request that came to nothing, in JSON or by a page."""

    def __init__(self, pages: Pages, diagnostics: Diagnostics) -> None:
        self._pages = pages
        self._diagnostics = diagnostics

    async def answer(self, request: Request, error: Exception) -> Response:
        """Say what *error* means; not a checkpoint."""
        headers: Mapping[str, str] = {}
        at: str | msgspec.UnsetType = msgspec.UNSET
        problem = str(error)
        match error:
            case HTTPException():
                status, problem, headers = error.status_code, error.detail, error.headers or {}
            case BadBody():
                status, problem, at = 400, error.problem, error.at or msgspec.UNSET
            case BrokenEncoding():
                status = 400
            case ClientDisconnect():  # nobody reads this
                status, problem = 400, "The client went away"
            case BodyTooLarge() | TooManyEvents():
                status = 413
            case UnknownEncoding():
                status, headers = 415, {"accept-encoding": ACCEPTED}  # RFC 9110, 12.5.3
            case StoreUnavailable():
                status, headers = 503, {"retry-after": str(RETRY_AFTER)}
                self._diagnostics.warn("receiver_store_unavailable", reason=problem)
            case _:  # the server logs it
                status, problem = 500, "The receiver has a bug; its log says more"
        if _is_for_a_person(request):
            page = self._pages.refusal(status, problem)
            return Response(page, status, headers={**self._pages.headers, **headers})
        return _json(Problem(problem, at), status=status, headers=headers)


_REFUSED = (
    HTTPException,
    BadBody,
    BrokenEncoding,
    BodyTooLarge,
    ClientDisconnect,
    StoreUnavailable,
    TooManyEvents,
    UnknownEncoding,
    Exception,
)


async def _find(store: Store, request: Request) -> StoredSession:
    session = await store.session(unquote(request.path_params["id"]))
    if session is None:
        raise HTTPException(404, "There is no session of this id")
    return session


def _number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A whole number from the query, brought into its limits."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        return min(max(int(text), least), most)
    except ValueError as error:
        raise HTTPException(400, f"{name} must be a whole number") from error


def _json(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        msgspec.json.encode(content),
        status,
        headers={
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **(headers or {}),
        },
        media_type="application/json",
    )


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_for_a_person(request: Request) -> bool:
    return not request.url.path.startswith(("/api/", "/healthz", "/openapi.json"))
