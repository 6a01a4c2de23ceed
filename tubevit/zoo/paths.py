"""Parameters by path: `encoder/norm/scale`, and with the stacked blocks apart `encoder/blocks/3/norm1/scale`."""

from __future__ import annotations

import itertools
import re

import jax
import numpy as np

BLOCKS = "encoder/blocks"


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


def _part_matches(have: str, want: str) -> bool:
    numbers = re.fullmatch(r"(\d+)-(\d+)", want)
    if numbers and have.isdecimal():
        return int(numbers[1]) <= int(have) <= int(numbers[2])
    return have == want


def rename(flat: dict, pairs) -> dict:
    """Paths that begin with the first of a pair begin with the second instead; the first pair that matches holds."""
    renamed = {}
    for path, leaf in flat.items():
        old, new = next(((old, new) for old, new in pairs if matches(path, old)), ("", ""))
        renamed[new.strip("/") + path.removeprefix(old.strip("/")) if old else path] = leaf
    return renamed


def summarise(lines: dict[str, str]) -> list[str]:
    """{path: text} as lines `path text` in which blocks that are alike are one line, such as `encoder/blocks/6-11`."""
    blocks: dict[int, list] = {}
    out = []
    for path, text in lines.items():
        match = re.fullmatch(rf"{BLOCKS}/(\d+)/(.+)", path)
        if match:
            blocks.setdefault(int(match[1]), []).append((match[2], text))
        else:
            out.append(path + text)

    def run(item):  # neighbours of the same content
        order, i = item
        return sorted(blocks[i]), i - order

    for (content, _), group in itertools.groupby(enumerate(sorted(blocks)), run):
        members = [i for _, i in group]
        where = f"{BLOCKS}/{members[0]}" + (f"-{members[-1]}" if len(members) > 1 else "")
        texts = {text for _, text in content}
        if len(content) > 4 and len(texts) == 1:
            out.append(f"{where}{texts.pop()}")
        else:
            out += [f"{where}/{inner}{text}" for inner, text in content]
    return out
