"""What Trimaran does at an endpoint that fails, and when its process ends: measured.

``python -m faults`` in this directory's parent, or ``tox -e faults``, runs real agents in
processes of their own against a real server in another, prints what became of every event,
and writes it into ``docs/delivery.md`` and ``docs/otlp.md``. The tests assert the same.
"""
