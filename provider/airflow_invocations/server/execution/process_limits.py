"""Limits of a new process's command line and environment.

Linux allows 131,072 bytes for each string including its final zero, and for all strings together a quarter of
the stack's limit, usually 2 MiB: https://man7.org/linux/man-pages/man2/execve.2.html, "Limits on size".
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Bytes of one string, at most: a part of the command, or NAME=value.
MAX_TEXT = 131_071

#: Bytes of all strings, at most; the rest of 2 MiB is for additions of the kernel and an interpreter.
MAX_TOTAL = min(os.sysconf("SC_ARG_MAX"), 2 * 1024 * 1024) - 64 * 1024

#: Additional bytes of each string: its final zero, and a pointer to it.
_OVERHEAD = 9


@dataclass(frozen=True, slots=True)
class Fitted:
    """An environment that fits the limits of a process."""

    variables: dict[str, str]
    #: Names of the omitted variables, in their order.
    omitted: list[str]


def size_of_text(text: str) -> int:
    """Return the size of a part of a command, in bytes."""
    return len(text.encode(errors="surrogateescape"))


def size_of_variable(name: str, value: str) -> int:
    """Return the size of NAME=value, in bytes."""
    return size_of_text(f"{name}={value}")


def size_of_all(command: Iterable[str], environment: Mapping[str, str]) -> int:
    """Return the size of a command and an environment, in bytes, including the overhead."""
    variables = (f"{name}={value}" for name, value in environment.items())
    return sum(size_of_text(text) + _OVERHEAD for text in (*command, *variables))


def fit_environment(
    command: Sequence[str], environment: Mapping[str, str], optional: Collection[str]
) -> Fitted:
    """Omit variables until the rest fits: first each one that is too large, then the largest ones.

    :param command: the process's command line, which takes space too.
    :param optional: names of the variables that may be omitted.
    """
    sizes = {name: size_of_variable(name, value) for name, value in environment.items()}
    omitted = {name for name in optional if sizes[name] > MAX_TEXT}
    kept = {name: value for name, value in environment.items() if name not in omitted}
    excess = size_of_all(command, kept) - MAX_TOTAL
    for name in sorted((name for name in optional if name in kept), key=sizes.__getitem__, reverse=True):
        if excess <= 0:
            break
        excess -= sizes[name] + _OVERHEAD
        omitted.add(name)
    return Fitted(
        {name: value for name, value in environment.items() if name not in omitted},
        [name for name in environment if name in omitted],
    )
