"""Parameters by path: `encoder/norm/scale`, and with the stacked blocks apart `encoder/blocks/3/norm1/scale`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from tubevit.errors import UserError, closest

BLOCKS = "encoder/blocks"
_ARRAYS = 11  # of a block at least: two normalisations and four linear layers, one of them maybe without bias


def flatten(tree: dict) -> dict:
    """Nested dicts -> {path: array}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: dict) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def unstack(flat: dict) -> dict:
    """Each block's arrays under a path of its own; the others as they are."""
    apart = {}
    for path, leaf in flat.items():
        if path.startswith(f"{BLOCKS}/"):
            inner = path.removeprefix(f"{BLOCKS}/")
            apart |= {f"{BLOCKS}/{i}/{inner}": layer for i, layer in enumerate(np.asarray(leaf))}
        else:
            apart[path] = leaf
    return apart


def stack(apart: dict) -> dict:
    """The inverse of `unstack`."""
    flat, layers = {}, {}
    for path, leaf in apart.items():
        match = re.fullmatch(rf"{BLOCKS}/(\d+)/(.+)", path)
        if match:
            layers.setdefault(f"{BLOCKS}/{match[2]}", {})[int(match[1])] = leaf
        else:
            flat[path] = leaf
    return flat | {path: np.stack([parts[i] for i in range(len(parts))]) for path, parts in layers.items()}


def matches(path: str, beginning: str) -> bool:
    """Whether a path begins with these parts; a part such as `6-11` stands for each of the numbers."""
    have, want = path.split("/"), beginning.strip("/").split("/")
    return len(have) >= len(want) and all(map(_part_matches, have, want))


def no_match(key: str, beginning: str, paths: Iterable[str]) -> UserError:
    """The error for a beginning that no path has, with the closest."""
    beginnings = {path.rsplit("/", n)[0] for path in paths for n in range(path.count("/") + 1)}
    return UserError(f"{key}: no parameter begins with {beginning!r}; {closest(beginning, beginnings)}")


def _part_matches(have: str, want: str) -> bool:
    numbers = re.fullmatch(r"(\d+)-(\d+)", want)
    if numbers and have.isdecimal():
        return int(numbers[1]) <= int(have) <= int(numbers[2])
    return have == want


def rename(flat: dict, pairs: Sequence[tuple[str, str]]) -> tuple[dict, list[str]]:
    """Paths that begin with the first of a pair begin with the second instead; the first pair that matches holds.

    Returns:
        {path: array}, and the paths that were there already and gave way.

    Raises:
        UserError: a pair matches no path, or has ranges.
    """
    for old, new in pairs:
        if any(re.fullmatch(r"\d+-\d+", part) for name in (old, new) for part in name.split("/")):
            raise UserError(f"init.rename: {old}={new} has a range; name each block, such as {BLOCKS}/6={BLOCKS}/0")
        if not any(matches(path, old) for path in flat):
            raise no_match("init.rename", old, flat)
    kept, renamed = {}, {}
    for path, leaf in flat.items():
        pair = next((pair for pair in pairs if matches(path, pair[0])), None)
        if pair is None:
            kept[path] = leaf
        else:
            renamed[pair[1].strip("/") + path.removeprefix(pair[0].strip("/"))] = leaf
    return kept | renamed, [path for path in kept if path in renamed]


def summarise(texts: Mapping[str, str]) -> list[str]:
    """{path: text} as lines `path text`, see `grouped`; of blocks that are there with all their arrays one line."""
    blocks: dict[int, dict[str, str]] = {}
    for path, text in texts.items():
        match = re.fullmatch(rf"{BLOCKS}/(\d+)/(.+)", path)
        if match:
            blocks.setdefault(int(match[1]), {})[match[2]] = text
    whole = [i for i, leaves in blocks.items() if len(leaves) >= _ARRAYS and not any(leaves.values())]
    short = {f"{BLOCKS}/{i}": "" for i in whole}
    rest = {path: text for path, text in texts.items() if not any(matches(path, beginning) for beginning in short)}
    return grouped(rest) + grouped(short)


def grouped(texts: Mapping[str, str]) -> list[str]:
    """{name: text} as lines `name text`; names that differ in their first number are one: `blocks.0-11.norm1.bias`."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for name, text in texts.items():
        head, number, tail = re.fullmatch(r"(\D*)(\d*)(.*)", name).groups()
        groups.setdefault((head, tail, text), []).append(int(number) if number else -1)
    return sorted(f"{head}{_ranges(numbers)}{tail}{text}" for (head, tail, text), numbers in groups.items())


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> `0-2,5`; -1 stands for none."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "" if runs == [[-1, -1]] else ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
