import re

import numpy as np
import pytest

from tubevit.checkpoint.paths import flatten, matches, rename, stack, summarise, unflatten, unstack
from tubevit.errors import UserError


def tree():
    blocks = {"norm1": {"bias": np.arange(6.0).reshape(3, 2)}, "mlp": {"up": {"kernel": np.ones((3, 4, 5))}}}
    return {"encoder": {"blocks": blocks, "norm": {"scale": np.ones(2)}}, "class_token": np.zeros(2)}


def test_blocks_apart_and_together():
    flat = flatten(tree())
    apart = unstack(flat)
    assert len(apart) == 3 + 3 + 2 and apart["encoder/blocks/2/norm1/bias"].tolist() == [4, 5]
    again = unflatten(stack(apart))
    assert flatten(again).keys() == flat.keys()
    for path, leaf in flatten(again).items():
        np.testing.assert_array_equal(leaf, flat[path])


@pytest.mark.parametrize(
    "path, beginning, expected",
    [
        ("pooling/score/kernel", "pooling", True),
        ("pooling/score/kernel", "pooling/score/kernel", True),
        ("pooling/score/kernel", "pooling/score/", True),
        ("pooling/score", "pooling/score/kernel", False),
        ("poolings/x", "pooling", False),
        ("encoder/blocks/10/norm1/bias", "encoder/blocks/1", False),
        ("encoder/blocks/10/norm1/bias", "encoder/blocks/6-11", True),
        ("encoder/blocks/5/norm1/bias", "encoder/blocks/6-11", False),
        ("encoder/blocks/12/norm1/bias", "encoder/blocks/6-11", False),
        ("heads/6-11/bias", "heads/6-11", True),
    ],
)
def test_matches(path, beginning, expected):
    assert matches(path, beginning) is expected


def test_rename():
    flat = {"a/b/c": 1, "a/x": 2, "ab": 3}
    assert rename(flat, [("a/b", "q"), ("a", "r/s")]) == ({"q/c": 1, "r/s/x": 2, "ab": 3}, [])
    assert rename(flat, []) == (flat, [])


@pytest.mark.parametrize("old, new", [("2", "1"), ("1", "2")])
def test_what_is_renamed_takes_the_place_of_what_is_there(old, new):
    flat = {"encoder/blocks/1/x": 1, "encoder/blocks/2/x": 2}
    renamed, displaced = rename(flat, [(f"encoder/blocks/{old}", f"encoder/blocks/{new}")])
    assert renamed == {f"encoder/blocks/{new}/x": int(old)} and displaced == [f"encoder/blocks/{new}/x"]


@pytest.mark.parametrize(
    "pair, text",
    [
        (("encodr", "x"), "no parameter begins with 'encodr'; did you mean 'encoder' or 'encoder/blocks'?"),
        (("encoder/blocks/1-2", "encoder/blocks/0-1"), "has a range; name each block"),
    ],
)
def test_pairs_that_rename_nothing(pair, text):
    with pytest.raises(UserError, match=re.escape(text)):
        rename({"encoder/blocks/1/x": 1, "a": 2}, [pair])


def test_alike_blocks_are_one_line():
    whole = {f"encoder/blocks/{i}/{leaf}": "" for i in (4, 5, 6, 8) for leaf in "abcdefghijkl"}
    assert summarise(whole) == ["encoder/blocks/4-6,8"]
    some = {f"encoder/blocks/{i}/mlp/up": ": 1" for i in (0, 1)} | {"x": ": 2", "encoder/blocks/3/mlp/up": ": 1"}
    assert summarise(some) == ["encoder/blocks/0-1,3/mlp/up: 1", "x: 2"]
