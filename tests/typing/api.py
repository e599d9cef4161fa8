"""Public names as a user writes them: checked by mypy and pyright, never run.

Every public name stands here, spelt ``trimaran.x``, in a use whose type matters; a test
compares this file with ``__all__``.
"""

import trimaran

__all__ = ["trimaran"]
