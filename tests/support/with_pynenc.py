"""Where pynenc can't be had: its tests are skipped there, and the reason says so."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest


def why_no_pynenc() -> str | None:
    """The reason; None where it is installed, and where it has to be."""
    if (3, 12) <= sys.version_info < (3, 14) or find_spec("pynenc"):
        return None
    return "pynenc needs Python 3.12, and its dependency cistell has no wheel for Python 3.14"


with_pynenc = pytest.mark.skipif(why_no_pynenc() is not None, reason=why_no_pynenc() or "")
