"""Processes that are killed, and what they leave behind.

``python -m kill`` in this directory's parent, or ``tox -e kill``, lets real agents with a
spool loose on a real receiver, kills them at random moments, and checks that everything
that a killed process had called safe is at the receiver, exactly once. The tests do the
same with fewer.
"""
