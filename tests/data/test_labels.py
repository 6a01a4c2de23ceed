import dataclasses
import hashlib

import numpy as np
import pytest

from tubevit.data.labels import check_distinct, distinct_names, label_hash
from tubevit.data.sources import Source
from tubevit.errors import UserError
from tubevit.sharding.agreement import SourceEntries

CRANES = ("crane", "ox", "crane")


def test_the_hash_is_that_of_the_ordered_names():
    assert label_hash(("a", "b")) == hashlib.sha256(b"a\nb").hexdigest()[:16]
    assert len({label_hash(names) for names in (("a", "b"), ("b", "a"), ("a",), ("a", "b", "c"))}) == 4


def test_names_that_are_not_utf_8_have_a_hash():
    assert label_hash(("caf\udce9", "b")) == hashlib.sha256(b"caf\xe9\nb").hexdigest()[:16]


def source(classes, labels, multi_label=False):
    labels = np.eye(len(classes), dtype=np.float32)[labels] if multi_label else np.array(labels, np.int32)
    return Source("s", [f"{i}.mp4" for i in range(len(labels))], labels, classes, len(labels))


def test_equal_names_are_shown_with_their_index():
    assert distinct_names(CRANES) == ("crane (0)", "ox", "crane (2)")
    assert distinct_names(("a", "b")) == ("a", "b") and distinct_names(()) == ()
    with pytest.raises(UserError, match="s: expected distinct class names; found 'crane' for classes 0 and 2"):
        check_distinct("s", CRANES)


@pytest.mark.parametrize("multi_label", [False, True])
def test_equal_names_are_kept_apart_by_index(multi_label):
    cranes = source(CRANES, [0, 2, 1], multi_label)
    assert cranes.with_classes(CRANES) is cranes  # as a checkpoint holds them
    numbers = source(("0", "1", "2"), [2, 0], multi_label).with_classes(CRANES)
    found = numbers.labels.argmax(axis=1) if multi_label else numbers.labels
    assert found.tolist() == [2, 0] and numbers.classes == CRANES
    by_name = source(("crane", "ox"), [1, 0], multi_label)
    with pytest.raises(UserError, match=r"1.mp4: 'crane' is the name of several classes \(index 0 and 2\)"):
        by_name.with_classes(CRANES)
    with pytest.raises(UserError, match="'crane' is the name of several classes"):
        cranes.with_classes(("crane", "ox"))  # they would be merged
    unused = source(("crane", "ox"), [1, 1], multi_label).with_classes(CRANES)
    assert (unused.labels.argmax(axis=1) if multi_label else unused.labels).tolist() == [1, 1]


def test_processes_that_mean_different_classes_of_one_name_disagree():
    one, other = source(CRANES, [0]), source(CRANES, [2])
    assert SourceEntries(one)[:4] != SourceEntries(other)[:4]
    same = dataclasses.replace(one, labels=one.labels.copy())
    assert SourceEntries(one)[:4] == SourceEntries(same)[:4]


@pytest.mark.parametrize("multi_label", [False, True])
def test_brackets_of_templates_do_not_matter(multi_label):
    """The Hub's models of Something-Something have them in their labels, the official label map has not."""
    found = source(("Holding something", "Moving [part] of something"), [1, 0], multi_label).with_classes(
        ("Moving [part] of [something]", "Approaching [something]", "Holding [something]")
    )
    expected = np.eye(3)[[0, 2]] if multi_label else np.array([0, 2])
    np.testing.assert_array_equal(found.labels, expected)
    with pytest.raises(UserError, match="unknown label 'Holding something'"):  # it could mean either
        source(("Holding something",), [0], multi_label).with_classes(("[Holding] something", "Holding [something]"))
