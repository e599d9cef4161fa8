"""Sessions in MLflow and Phoenix, as these show them: ``python -m systems``.

They are large and start slowly, so this is a command of its own, and not among the tests.
"""
