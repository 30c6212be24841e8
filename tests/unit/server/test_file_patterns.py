"""Patterns of files select what pathspec selects, and take no longer for being written badly."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pathspec
import pytest

from airflow_invocations.server.query.file_patterns import MAX_PATTERN, FilePatterns, PatternError

#: What generated parts of a pattern are made of. pathspec lets brackets match the `/` between two parts, git
#: does not, so every class here leaves it out.
ATOMS = [
    "a", "b", "ab", "x", ".", "é", "#", "!", "",
    "*", "**", "?", "*a", "a*", "*a*b*", "a?",
    "[ab]", "[a-c]", "[a-]", "[]a]", "[\\a]", "[--.]", "[!a.-0]", "[^b.-0]", "[!]a.-0]",
    "\\*", "\\[", "\\ ",
]  # fmt: skip
NAMES = [
    "a", "b", "ab", "abc", "aab", "ba", "bb", "c", "x", "xa", "ax", "a.b", ".a", "a ", "é",
    "*", "[", "]", "-", "#", "!", "\\",
]  # fmt: skip


def generated(dice: random.Random) -> Iterator[tuple[list[str], str]]:
    while True:
        patterns = [pattern(dice) for _ in range(dice.randint(1, 3))]
        for _ in range(10):
            yield patterns, "/".join(dice.choices(NAMES, k=dice.randint(1, 5)))


def pattern(dice: random.Random) -> str:
    parts = ["".join(dice.choices(ATOMS, k=dice.choice([1, 1, 2, 3]))) for _ in range(dice.randint(1, 4))]
    return dice.choice(["", "", "!", "/"]) + "/".join(parts) + dice.choice(["", "", "/", " "])


@pytest.mark.parametrize("seed", range(5))
def test_generated_patterns_select_what_pathspec_selects(seed: int) -> None:
    compared = selected = 0
    for patterns, path in generated(random.Random(seed)):
        try:
            mine = FilePatterns(patterns)
        except PatternError:
            continue
        expected = pathspec.GitIgnoreSpec.from_lines(patterns).match_file(path)
        assert mine.match(path) is expected, (patterns, path)
        compared += 1
        selected += expected
        if compared == 6000:
            break
    assert 200 < selected < 5800


@pytest.mark.parametrize(
    ("patterns", "path", "selected"),
    [
        (["*.csv"], "a/b.csv", True),
        (["/*.csv"], "a/b.csv", False),
        (["a/"], "a", False),
        (["a/"], "b/a/c", True),
        (["**/raw/**/*.bin"], "x/raw/2024/01/a.bin", True),
        (["*", "!a/b"], "a/b", False),
        (["a[!x]b"], "a/b", False),
        (["a\nb"], "a\nb", True),
        (["# a", "", "/"], "# a", False),
        ([r"\# a"], "# a", True),
        ([r"\!a"], "!a", True),
        (["a"], "a\n", False),
    ],
)
def test_patterns_follow_the_rules_of_git(patterns: list[str], path: str, selected: bool) -> None:
    assert FilePatterns(patterns).match(path) is selected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x[z-a]", "'x[z-a]': the range z-a is empty; write a-z"),
        ("[ab", r"'[ab': a '[' has no ']'; write \[ for the character"),
        ("[]", r"'[]': a '[' has no ']'; write \[ for the character"),
        ("[!]", r"'[!]': a '[' has no ']'; write \[ for the character"),
        ("a[/]b", r"'a[/]b': a '[' has no ']'; write \[ for the character"),
        ("a\\", r"'a\\': nothing follows the backslash at the end; write \\ for one"),
        ("!", "'!': there is nothing after the '!'"),
        ("x" * 1001, f"'{'x' * 60}...' has 1001 characters; a pattern may have 1000"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_rejected_with_the_reason(line: str, why: str) -> None:
    with pytest.raises(PatternError) as rejected:
        FilePatterns([line])
    assert str(rejected.value) == why


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("*?" * 400 + "Z", "a" * 255),
        ("*a" * 499 + "b", "/".join(["a" * 255] * 16)),
        ("*[!b]" * 199 + "c", "/".join(["a" * 255] * 16)),
        ("*" + "a" * 200 + "b*" + "a" * 200 + "b", "/".join(["a" * 255] * 16)),
        ("**/a/" * 199 + "b", "a/" * 2000 + "a"),
        ("/".join(["*a*a*b"] * 140), "/".join(["a" * 30] * 140)),
    ],
)
def test_the_worst_pattern_and_path_take_no_longer_than_their_sizes_allow(line: str, path: str) -> None:
    assert len(line) <= MAX_PATTERN
    patterns = FilePatterns([line])
    began = time.process_time()
    assert not patterns.match(path)
    # Milliseconds. With backtracking the first of these takes longer than the universe is old.
    assert time.process_time() - began < 2
