import types

import numpy as np

from tubevit.data.sources import Source
from tubevit.data.views import ONE_VIEW
from tubevit.evaluation.evaluate import Predictions
from tubevit.visualize.evaluated import Evaluated, _part
from tubevit.visualize.style import evenly


def source(labels, **fields):
    keys = [f"{i}.mp4" for i in range(len(labels))]
    return Source("clips.csv", keys, np.array(labels), ("a", "b", "c"), listed=len(labels) + 1, **fields)


def test_a_part_of_a_source_has_the_same_files():
    whole = source(range(10), listed_at=[f"line {i}" for i in range(10)])
    part = _part(whole, evenly(4, 10))
    assert [part.media(i) for i in range(len(part))] == list(part.keys) == ["0.mp4", "2.mp4", "5.mp4", "7.mp4"]
    assert part.labels.tolist() == [0, 2, 5, 7] and part.listed_at[3] == "line 7" and part.listed == whole.listed
    records = _part(source(range(10), read=lambda i: f"record {i}"), np.array([3, 9]))
    assert records.media(1) == "record 9"
    assert len(_part(whole, evenly(100, 10))) == 10


def evaluated(labels, probabilities, used):
    load = types.SimpleNamespace(source=source(labels))
    return Evaluated("mine", "default", load, 9, Predictions(np.array(probabilities), np.array(used), ONE_VIEW))


def test_the_surest_right_predictions_are_one_of_each_class():
    probabilities = [[0.8, 0.2, 0], [0.9, 0.1, 0], [0.3, 0.7, 0], [0, 0, 1.0], [0, 0.95, 0.05]]
    each = evaluated([0, 0, 1, 0, 1], probabilities, [True, True, True, True, False])
    assert list(each.surest(5)) == [1, 2] and list(each.surest(1)) == [1]  # 3 is wrong, 4 cannot be decoded
    several = evaluated(np.eye(3)[[0, 0, 1, 0, 1]], probabilities, [True] * 5)
    assert list(several.surest(5)) == [4, 1]
