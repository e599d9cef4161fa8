"""Where a relay is: its directory, its lock, and the address that it can be reached at.

In: a directory. Out: a lock, an address.
Does not know: what a relay does. Nothing here takes longer than a look at a directory.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from trimaran._settings import Relay, Settings
from trimaran._spool.file import make_private, state_directory
from trimaran._spool.lock import OwnerLock, holder, lives

__all__ = ["RelayPlace", "relay_of"]

_RELAY = "relay"
_START = "start"
_ADDRESS = "relay.at"


def relay_of(app: str, settings: Settings) -> Relay | None:
    """The relay that *settings* ask for, with its directory; None for none.

    Raises:
        SpoolError: it has no directory; see :func:`state_directory`.
    """
    chosen = settings.relay
    if chosen is False:
        return None
    if isinstance(chosen, str):
        return Relay(directory=chosen)
    relay = Relay() if chosen is True else chosen
    if relay.directory is not None:
        return relay
    return Relay(
        directory=str(state_directory(app) / "relay"),
        idle_timeout=relay.idle_timeout,
        most_bytes=relay.most_bytes,
        most_seconds=relay.most_seconds,
        survives=relay.survives,
    )


class RelayPlace:
    """The directory of a relay, and what tells that one is there.

    Who holds the lock is the relay; the address, a link to its socket, is there while it
    can be reached. One that is killed leaves an address at which nobody is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory: Path = directory
        self._address = directory / _ADDRESS

    def lock(self) -> OwnerLock | None:
        """Become the relay; None while there is one.

        Raises:
            SpoolError: the system has no such locks, or the directory is another user's.
            OSError: the directory or a file in it cannot be made.
        """
        make_private(self.directory)
        lock = OwnerLock.seized(self.directory, _RELAY)
        if lock is not None:
            lock.sign()
        return lock

    def starting(self) -> OwnerLock | None:
        """Become the one who starts a relay; None while another does. Raises as :meth:`lock`."""
        make_private(self.directory)
        return OwnerLock.seized(self.directory, _START)

    def is_held(self) -> bool:
        """Whether there is a relay, though it may not be reachable yet, or any more.

        Raises:
            SpoolError: the system has no such locks.
            OSError: it cannot be found out.
        """
        return lives(self.directory, _RELAY)

    def holder(self) -> int | None:
        """The process that is the relay; None where there is none, or it does not say. Raises
        as :meth:`is_held`.
        """
        return holder(self.directory, _RELAY) if self.is_held() else None

    def sweep(self) -> None:
        """Remove the locks that relays which were killed left; for who holds the lock here,
        when it has taken over what they had.
        """
        for path in self.directory.glob("*.lock"):
            if path.stem not in {_RELAY, _START}:
                lock = OwnerLock.seized(self.directory, path.stem)
                if lock is not None:
                    lock.release(remove=True)

    def address(self) -> Path | None:
        """The socket at which the relay can be reached; None where there is none."""
        try:
            return self._address.readlink()
        except OSError:
            return None

    def announce(self, address: Path) -> None:
        """Be reachable at *address*; for who holds the lock."""
        new = self._address.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.symlink_to(address)
        new.replace(self._address)

    def retract(self, address: Path) -> None:
        """Be reachable at *address* no more. What somebody else announced stays."""
        with suppress(OSError):
            if self.address() == address:
                self._address.unlink(missing_ok=True)
