"""A trio loop in a thread of its own, for programs that run none.

In: an async block to hold open there, and calls from other threads.
Out: what they give; an end that is reached in time, whatever the loop is doing.
Does not know: telemetry.

The thread is a daemon, since nothing that runs in it may hold up the interpreter's exit:
a host's own code is called there, and may hang. A block that was never left is left when
the interpreter exits, which is what waits for it, no longer than it may take.
"""

from __future__ import annotations

import atexit
import contextvars
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent import futures
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from trimaran._aside import Resolver
from trimaran._forked import tell_if_forked

if TYPE_CHECKING:
    from multiprocessing.util import Finalize

__all__ = ["BlockInThread", "NoAnswer", "NoThread"]

_Value = TypeVar("_Value")
_Held = TypeVar("_Held")
_Result = TypeVar("_Result")


class NoAnswer(Exception):
    """The loop has ended, is not of this process, or did not answer in time."""


class NoThread(Exception):
    """There can be no further thread."""


class BlockInThread(Generic[_Value]):
    """An async block that is held open in a trio loop of its own.

    Args:
        block: makes the block; called in the loop.
        name: the thread's.
        patience: seconds that leaving it may take.
    """

    def __init__(
        self,
        block: Callable[[], AbstractAsyncContextManager[_Value]],
        *,
        name: str,
        patience: float,
    ) -> None:
        self._block = block
        self._patience = patience
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._token: trio.lowlevel.TrioToken | None = None
        self._deadline: float | None = None
        # Rather than join() and is_alive(): a join that a Ctrl-C interrupts takes the thread
        # for over from then on (CPython 3.11 and 3.12).
        self._ended = threading.Event()
        self._opened: Future[_Value] = Future()
        self._opening = trio.CancelScope()
        self._left = trio.Event()
        self.failure: BaseException | None = None
        """What ended the loop, if it did not end by being left."""
        self._at_worker_end: Finalize | None = None
        self._is_here = True
        tell_if_forked(self)

    def forked(self) -> None:
        """This is a forked child's copy: there is no loop here, and none to wait for."""
        self._is_here = False

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling code runs in the loop itself, where nothing can wait for it."""
        return threading.get_ident() == self._thread.ident

    @property
    def has_ended(self) -> bool:
        """Whether the loop is over, as far as this process is concerned."""
        return not self._is_here or self._ended.is_set()

    # The thread.

    def _run(self) -> None:
        try:
            trio.run(self._hold)
        except BaseException as error:  # noqa: BLE001 - handed to whoever leaves the block
            self.failure = error
            _fail(self._opened, error)
        finally:
            _fail(self._opened)
            self._ended.set()

    async def _hold(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        trio.socket.set_custom_hostname_resolver(Resolver())
        if self._deadline is not None:  # left before it was entered
            return
        with self._opening:
            async with self._block() as value:
                _settle(self._opened, value)
                await self._left.wait()

    def _leave(self) -> None:
        self._left.set()
        if not self._opened.done():
            self._opening.cancel()

    # Everybody else.

    def open(self) -> _Value:
        """Start the thread, and give what the block gives; or raise what it raises.

        Raises:
            NoThread: there can be no further one.
        """
        try:
            atexit.register(self.close)
            self._at_worker_end = _called_at_worker_end(self.close)
            try:
                self._thread.start()
            except RuntimeError as error:
                self._ended.set()
                raise NoThread(str(error)) from None
            return self._opened.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the block, and wait until the thread is over, *patience* seconds at most.

        What a signal handler raises meanwhile, ``KeyboardInterrupt`` say, comes out after
        that. May be called again, from any thread; the time is counted from the first
        call. In the loop itself and in a forked child it waits for nothing.
        """
        if not self._is_here:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + self._patience
        if self._thread.ident is None:
            # An interrupt came before there was a thread. One that is just beginning sees that
            # there is nothing to enter any more.
            self._ended.set()
        self._call_soon(self._leave)
        interruption: BaseException | None = None
        while not (self.has_ended or self.is_own_thread):
            rest = self._deadline - time.monotonic()
            if rest <= 0:
                break
            try:
                self._ended.wait(min(rest, threading.TIMEOUT_MAX))
            except BaseException as error:  # noqa: BLE001 - raised again below, as it is
                interruption = interruption or error
        atexit.unregister(self.close)
        if self._at_worker_end is not None:
            self._at_worker_end.cancel()
        if interruption is not None:
            raise interruption
        if self.has_ended:
            with suppress(RuntimeError):  # it was never started, or is the calling one
                self._thread.join()

    def submit(self, call: Callable[[], Awaitable[_Result]]) -> Future[_Result]:
        """Run async *call* in the loop; from any thread, without waiting.

        Cancelling the future cancels the call. If the loop ends first, or has ended, the
        future fails with :class:`NoAnswer`.
        """
        future: Future[_Result] = Future()
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    _settle(future, await call())
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - the caller's
                _fail(future, error)
            finally:
                _fail(future)

        def start() -> None:
            try:
                trio.lowlevel.spawn_system_task(run, context=contextvars.Context())
            except RuntimeError:  # the run is about to end, and takes no task any more
                _fail(future)

        def cancel(done: Future[_Result]) -> None:
            if done.cancelled():
                self._call_soon(scope.cancel)

        future.add_done_callback(cancel)
        if not self._call_soon(start):
            _fail(future)
        return future

    def wait(self, future: Future[_Result], timeout: float | None = None) -> _Result:
        """What *future* gives. An exception while waiting, a Ctrl-C say, cancels it.

        Raises:
            NoAnswer: nothing will come, or nothing came within *timeout* seconds. In the
                loop itself, which would have to give it, nothing will.
        """
        if not self._is_here:  # nor is whoever would let go of the future's lock
            raise NoAnswer
        if not self.is_own_thread:
            try:
                futures.wait(
                    (future,), None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
                )
            except BaseException:
                future.cancel()
                raise
        if not future.done():
            future.cancel()
            raise NoAnswer
        return future.result()

    @contextmanager
    def held(
        self,
        block: Callable[[], AbstractAsyncContextManager[_Held]],
        *,
        entering: float,
        leaving: float,
    ) -> Generator[_Held | None]:
        """Hold a further async block open in the loop, around a plain one.

        Args:
            block: makes it; called in the loop.
            entering: seconds to wait until it is entered; None is given where it is not.
            leaving: seconds to wait until it is left; it is, later, in any case.
        """
        opened: Future[_Held] = Future()
        left = trio.Event()

        async def hold() -> None:
            async with block() as value:
                if _settle(opened, value):
                    await left.wait()

        done = self.submit(hold)
        done.add_done_callback(
            lambda over: _fail(opened, None if over.cancelled() else over.exception())
        )
        value: _Held | None = None
        try:
            with suppress(NoAnswer):
                value = self.wait(opened, entering)
            yield value
        finally:
            self._call_soon(left.set)
            with suppress(NoAnswer):
                self.wait(done, leaving)

    def _call_soon(self, call: Callable[[], object]) -> bool:
        """Call *call* in the loop; False if that is over, not yet there, or not here."""
        if self._token is None or not self._is_here:
            return False
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return False
        return True


def _called_at_worker_end(close: Callable[[], object]) -> Finalize | None:
    """Have *close* called at the end of a worker of multiprocessing, if this is one.

    Those that were forked end without ``atexit``, before Python 3.13.
    """
    if "multiprocessing.process" not in sys.modules:
        return None
    from multiprocessing import parent_process, util  # noqa: PLC0415 - it is there already

    return None if parent_process() is None else util.Finalize(None, close, exitpriority=0)


def _settle(future: Future[_Result], result: _Result) -> bool:
    """Give *future* its result; False if nobody waits for it any more."""
    try:
        future.set_result(result)
    except InvalidStateError:
        return False
    return True


def _fail(future: Future[_Result], error: BaseException | None = None) -> None:
    """Give *future* an error, unless it has something already."""
    if not future.done():
        with suppress(InvalidStateError):
            future.set_exception(NoAnswer() if error is None else error)
