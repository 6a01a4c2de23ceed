"""Parameters by path: `encoder/norm/scale`, and with the stacked blocks apart `encoder/blocks/3/norm1/scale`."""

import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from tubevit.errors import UserError, closest

BLOCKS = "encoder/blocks"
_IN_BLOCK = re.compile(rf"{BLOCKS}/(\d+)/(.+)")
_ARRAYS = 11  # a block has at least these: two normalisations and four linear layers, one of them maybe without bias


def flatten(tree: dict) -> dict:
    """Turn nested dicts into {path: array}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: dict) -> dict:
    """Invert `flatten`."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def unstack(flat: dict) -> dict:
    """Give the arrays of each block paths of their own; other arrays stay as they are."""
    apart = {}
    for path, leaf in flat.items():
        if path.startswith(f"{BLOCKS}/"):
            inner = path.removeprefix(f"{BLOCKS}/")
            apart |= {f"{BLOCKS}/{i}/{inner}": layer for i, layer in enumerate(np.asarray(leaf))}
        else:
            apart[path] = leaf
    return apart


def stack(apart: dict) -> dict:
    """Invert `unstack`."""
    flat, layers = {}, {}
    for path, leaf in apart.items():
        if match := _IN_BLOCK.fullmatch(path):
            layers.setdefault(f"{BLOCKS}/{match[2]}", {})[int(match[1])] = leaf
        else:
            flat[path] = leaf
    return flat | {path: np.stack([parts[i] for i in range(len(parts))]) for path, parts in layers.items()}


def matches(path: str, prefix: str) -> bool:
    """Whether a path starts with the parts of `prefix`; a part such as `6-11` stands for each of the numbers."""
    parts, pattern = path.split("/"), prefix.strip("/").split("/")
    return len(parts) >= len(pattern) and all(map(_part_matches, parts, pattern))


def no_match(key: str, prefix: str, paths: Iterable[str]) -> UserError:
    """Make the error for a prefix that no path has; it names the closest ones."""
    prefixes = {path.rsplit("/", n)[0] for path in paths for n in range(path.count("/") + 1)}
    return UserError(f"{key}: no parameter begins with {prefix!r}; {closest(prefix, prefixes)}")


def _part_matches(part: str, pattern: str) -> bool:
    numbers = re.fullmatch(r"(\d+)-(\d+)", pattern)
    if numbers and part.isdecimal():
        return int(numbers[1]) <= int(part) <= int(numbers[2])
    return part == pattern


def rename(flat: dict, pairs: Sequence[tuple[str, ...]]) -> tuple[dict, list[str]]:
    """Replace prefixes of paths by the first pair that matches; return {path: array} and the paths that were replaced.

    Raises UserError if a pair matches no path, or contains a range.
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


def differences(expected: Mapping, found: Mapping) -> list[str]:
    """Compare names and shapes of two {path: array}: lines about what is missing, unexpected or of another shape."""
    problems = [f"missing {line}" for line in summarise(path for path in expected if path not in found)]
    problems += [f"unexpected {line}" for line in summarise(path for path in found if path not in expected)]
    shapes = {path: (tuple(array.shape), tuple(found[path].shape)) for path, array in expected.items() if path in found}
    return problems + summarise({p: f": expected {a}, found {b}" for p, (a, b) in shapes.items() if a != b})


def summarise(texts: Mapping[str, str] | Iterable[str]) -> list[str]:
    """Summarise {path: text}, or paths alone, as `grouped` does; a block with all of its arrays is one line."""
    texts = _with_texts(texts)
    blocks: dict[int, dict[str, str]] = {}
    for path, text in texts.items():
        if match := _IN_BLOCK.fullmatch(path):
            blocks.setdefault(int(match[1]), {})[match[2]] = text
    whole = [f"{BLOCKS}/{i}" for i, leaves in blocks.items() if len(leaves) >= _ARRAYS and not any(leaves.values())]
    rest = {path: text for path, text in texts.items() if not any(matches(path, block) for block in whole)}
    return grouped(rest) + grouped(whole)


def grouped(texts: Mapping[str, str] | Iterable[str]) -> list[str]:
    """Write {name: text}, or names alone, one line for all that differ in their first number: `blocks.0-11.x`."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for name, text in _with_texts(texts).items():
        ((head, number, tail),) = re.findall(r"^(\D*)(\d*)(.*)", name)
        groups.setdefault((head, tail, text), []).append(int(number) if number else -1)
    return sorted(f"{head}{_ranges(numbers)}{tail}{text}" for (head, tail, text), numbers in groups.items())


def _with_texts(texts: Mapping[str, str] | Iterable[str]) -> Mapping[str, str]:
    return texts if isinstance(texts, Mapping) else dict.fromkeys(texts, "")


def _ranges(numbers: list[int]) -> str:
    """Write numbers as ranges, [0, 1, 2, 5] as `0-2,5`; -1 stands for no number."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "" if runs == [[-1, -1]] else ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
