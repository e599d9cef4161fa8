"""Agents and a relay of their own: real processes, and what is seen of them from outside.

``python -m relay`` in this directory's parent kills relays while agents send, as often as it
is told, and checks that what was handed over is at the receiver, once each.
"""
