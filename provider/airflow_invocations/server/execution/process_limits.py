"""Limits of a new process's command line and environment.

Linux takes 131,072 bytes for each text, with the zero at its end, and for all together a quarter of the
stack's limit, 2 MiB usually: https://man7.org/linux/man-pages/man2/execve.2.html, "Limits on size".
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Bytes that one text may have: a part of the command, or NAME=value.
MAX_TEXT = 131_071

#: Bytes for all of them; the rest of 2 MiB is for what the kernel and an interpreter add.
MAX_TOTAL = min(os.sysconf("SC_ARG_MAX"), 2 * 1024 * 1024) - 64 * 1024

#: Bytes that each text costs beside its own: the zero at its end, and a pointer to it.
_OVERHEAD = 9


@dataclass(frozen=True, slots=True)
class Fitted:
    """An environment that fits the limits of a process."""

    variables: dict[str, str]
    #: Names of the variables left out, in their order.
    left_out: list[str]


def size_of_text(text: str) -> int:
    """Return the bytes of a part of a command."""
    return len(text.encode(errors="surrogateescape"))


def size_of_variable(name: str, value: str) -> int:
    """Return the bytes of NAME=value."""
    return size_of_text(f"{name}={value}")


def size_of_all(command: Iterable[str], environment: Mapping[str, str]) -> int:
    """Return the bytes of a command and an environment, with what they cost beside."""
    variables = (f"{name}={value}" for name, value in environment.items())
    return sum(size_of_text(text) + _OVERHEAD for text in (*command, *variables))


def fit_environment(
    command: Sequence[str], environment: Mapping[str, str], optional: Collection[str]
) -> Fitted:
    """Leave out variables until the rest fits: first each one that is too large, then the largest ones.

    :param command: the process's command line, which needs room too.
    :param optional: names of the variables that may be left out.
    """
    sizes = {name: size_of_variable(name, value) for name, value in environment.items()}
    left_out = {name for name in optional if sizes[name] > MAX_TEXT}
    kept = {name: value for name, value in environment.items() if name not in left_out}
    excess = size_of_all(command, kept) - MAX_TOTAL
    for name in sorted((name for name in optional if name in kept), key=sizes.__getitem__, reverse=True):
        if excess <= 0:
            break
        excess -= sizes[name] + _OVERHEAD
        left_out.add(name)
    return Fitted(
        {name: value for name, value in environment.items() if name not in left_out},
        [name for name in environment if name in left_out],
    )
