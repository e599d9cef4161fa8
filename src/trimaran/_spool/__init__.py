"""The spool: batches on disk until their fate is known.

``file`` is the queue itself, blocking; ``keeper`` serves it to tasks, and counts.
"""
