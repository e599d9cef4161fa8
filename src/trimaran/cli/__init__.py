"""The command ``trimaran``: a receiver, a way in for recorded events, and a demonstration.

In: a command line. Out: an exit status.
Does not know: anything but that; this file imports nothing that may be missing, so that
it can say what is.

Needs the extra ``cli``: ``pip install 'trimaran[all]'`` has it, and the receiver's.
"""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command of ``sys.argv``, and say its exit status.

    It is 0 for success, 1 for a failure, 2 for a wrong use, and 128 and the number of a
    signal that ended it.
    """
    try:
        from trimaran.cli._app import run  # noqa: PLC0415 - see above
    except ModuleNotFoundError as missing:
        if missing.name not in {"click", "rich"}:
            raise
        print(  # noqa: T201 - there is nothing better at hand
            "trimaran: the command needs the extra 'cli'; run: pip install 'trimaran[all]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:  # while importing
        return 130
    return run(sys.argv[1:])
