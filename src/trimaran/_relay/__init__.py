"""The relay: the sender as a process of the user's, shared by the processes of an app.

``messages`` is what both sides say to each other. The agent's side is ``client``, ``launch``
and ``way_out``, which stands in the endpoint's place; the relay's is ``server``, with an
``outlet`` for each destination and a ``wallet`` for each account.
"""
