"""``trimaran pipe`` in a process of its own, against a real receiver."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimaran.receiver import Receiver

if TYPE_CHECKING:
    from conftest import Command

