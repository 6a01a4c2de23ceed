"""Search: against cosines in float64, features as files, and whose features they are."""

import io

import numpy as np
import pytest

import tubevit
from tubevit.checkpoint.fingerprint import fingerprint
from tubevit.errors import UserError
from tubevit.evaluation import Prediction
from tubevit.evaluation.features import Features, read_features
from tubevit.evaluation.search import find_moments, open_model

MADE_WITH = {"model": "runs/a", "fingerprint": "0123", "budget": "25%:motion"}


def some_features(count=60, width=7, every=0.5, length=2.0, seed=0):
    """Clips of two videos, every `every` seconds each, and two files without times."""
    rng, half = np.random.default_rng(seed), count // 2
    start = np.concatenate([every * np.arange(half), every * np.arange(count - half), [np.nan, np.nan]])
    files = np.array(["a.mp4"] * half + ["b.mp4"] * (count - half) + ["c.png", "d.png"])
    features = rng.normal(size=(count + 2, width)).astype(np.float32)
    return Features(files, features, start, start + length, "tiny", "0123")


def by_hand(found, query, top):
    """The rows of the best clips, by a loop over all of them."""
    exact = found.features.astype(np.float64)
    exact, wanted = exact / np.linalg.norm(exact, axis=1, keepdims=True), query / np.linalg.norm(query)
    cosines, rows = exact @ wanted, []
    while len(rows) < top:
        free = [
            i
            for i in range(len(exact))
            if i not in rows
            and not any(found.files[i] == found.files[j] and abs(found.start[i] - found.start[j]) < 2 for j in rows)
        ]
        if not free:
            break
        rows.append(max(free, key=lambda i: cosines[i]))
    return rows, cosines[rows]


@pytest.mark.parametrize("top", [1, 5, 100])
def test_moments_are_the_most_similar_that_do_not_overlap(top):
    found, queries = some_features(), np.random.default_rng(1).normal(size=(3, 7))
    for query, moments in zip(queries, find_moments(found, queries.astype(np.float32), top), strict=True):
        rows, cosines = by_hand(found, query, top)
        assert [moment.file for moment in moments] == found.files[rows].tolist()
        np.testing.assert_allclose([moment.similarity for moment in moments], cosines, atol=1e-6)
        times = [(np.nan, np.nan) if m.start is None else (m.start, m.end) for m in moments]
        np.testing.assert_array_equal(times, np.stack([found.start, found.end], axis=1)[rows])
        if top == 100:
            assert {"c.png", "d.png"} <= {moment.file for moment in moments} and 8 < len(moments) < 20


def test_clips_that_only_touch_are_two_moments():
    found = some_features(every=2.0)
    assert len(find_moments(found, found.features[:1], 100)[0]) == 62
    found = some_features(every=0.1, length=0.1)  # 0.1 * 3 is more than 0.1 * 2 + 0.1
    assert len(find_moments(found, found.features[:1], 100)[0]) == 62


def test_features_of_another_width():
    with pytest.raises(UserError, match="expected features of 5 channels, those of the model; found 7"):
        find_moments(some_features(), np.ones((1, 5), np.float32), 3)


def saved(path, features):
    with path.open("wb") as file:
        features.save(file)
    return path


def test_features_are_read_as_they_were_written(tmp_path):
    clips = [Prediction("a.mp4", "video", 0.0, 2.0, np.ones(3, np.float32)), Prediction("\udcff.png", "image",
             features=np.zeros(3, np.float32))]  # fmt: skip
    found = read_features(saved(tmp_path / "x.npz", Features.collect(clips, 3, **MADE_WITH)))
    assert found.files.tolist() == ["a.mp4", "\udcff.png"] and [getattr(found, key) for key in MADE_WITH] == [
        *MADE_WITH.values()
    ]
    np.testing.assert_array_equal(found.features, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal([found.start, found.end], [[0, np.nan], [2, np.nan]])
    assert found.features.dtype == np.float32 and found.start.dtype == np.float64


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def damaged(name):
    """The content of a file that is no good, and what is said of it."""
    whole = vars(some_features(10))
    single = io.BytesIO()
    np.save(single, whole["features"])
    return {
        "empty": (b"", "is damaged or no .npz"),
        "text": (b"path,label\n", "is damaged or no .npz"),
        "cut": (npz(**whole)[:-200], "is damaged or no .npz"),
        "flipped": (npz(**whole)[:400] + b"\x55" * 8 + npz(**whole)[408:], "is damaged"),
        "single": (single.getvalue(), "is a single array"),
        "older": (npz(**{k: v for k, v in whole.items() if k != "budget"}), "of an older version"),
        "other": (npz(x=np.zeros(3)), "holds no features and no files and no start"),
        "keys": (npz(**{k: v for k, v in whole.items() if k != "start"}), "holds no start, only features, files"),
        "flat": (npz(**whole | {"features": np.zeros(12, np.float32)}), r"features has shape \(12,\)"),
        "lengths": (npz(**whole | {"end": np.zeros(3)}), r"end has shape \(3,\)"),
        "types": (npz(**whole | {"files": np.arange(12)}), "files has shape .* type int64"),
        "pickled": (npz(**whole | {"files": np.array([[]] * 12 + [None], object)}), "is damaged or no .npz"),
        "none": (npz(**whole | {k: v[:0] for k, v in whole.items() if isinstance(v, np.ndarray)}), "holds no features"),
        "nan": (npz(**whole | {"features": np.full((12, 7), np.nan, np.float32)}), "not finite, first of a.mp4"),
    }[name]


@pytest.mark.parametrize("name", ["empty", "text", "cut", "flipped", "single", "older", "other", "keys", "flat",
                                  "lengths", "types", "pickled", "none", "nan"])  # fmt: skip
def test_damaged_features(tmp_path, name):
    content, part = damaged(name)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=f"x.npz .*{part}"):
        read_features(tmp_path / "x.npz")


def test_features_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read .*nowhere.npz: No such file"):
        read_features(tmp_path / "nowhere.npz")
    with pytest.raises(UserError, match="cannot read .*: Is a directory"):
        read_features(tmp_path)
    with pytest.raises(UserError, match="local file; found gs://b/x.npz: copy it"):
        read_features("gs://b/x.npz")


def test_fingerprints_are_those_of_the_features(tiny):
    model = tiny(depth=1)
    assert fingerprint(tiny(depth=1, precision="bfloat16", scan=False, dropout=0.5)) == fingerprint(model)
    other = [tiny(depth=1, seed=1), tiny(depth=1, fps=8.0), tiny(depth=1, size=96), tiny(depth=1, gelu="tanh"),
             tiny(depth=1, norm_epsilon=1e-5), tiny(depth=2)]  # fmt: skip
    assert len({fingerprint(each) for each in (model, *other)}) == 1 + len(other)
    assert len(fingerprint(model)) == 64


@pytest.mark.parametrize("fps, expected", [(None, 8.0), (5.0, 5.0)])
def test_queries_are_as_long_as_the_clips_of_the_features(tiny, tmp_path, fps, expected):
    """With `--every`, clips of a model without a rate are as long as the interval; without it, they are whole files."""
    model = tiny(depth=1, fps=fps)
    tubevit.save_model(model, tmp_path / "made")
    found = dict(vars(some_features(length=2.0)), model=str(tmp_path / "made"), fingerprint=fingerprint(model))
    found["end"] = found["end"] - np.resize([0, 0.8, 0.8], len(found["end"]))  # most videos end within a clip
    assert open_model(Features(**found), "x.npz").config.fps == expected
    found["start"] = found["end"] = np.full(len(found["start"]), np.nan)
    assert open_model(Features(**found), "x.npz").config.fps == fps


def test_only_the_model_that_made_the_features(tiny, tmp_path, monkeypatch):
    """Under any name, and with other heads; by default under the name it had then."""
    monkeypatch.chdir(tmp_path)
    model = tiny(depth=1, fps=8.0)
    tubevit.save_model(model, "runs_a")
    tubevit.save_model(tiny(depth=1, fps=8.0, seed=1), "runs_b")
    found = Features(**vars(some_features()) | {"model": "runs_a", "fingerprint": fingerprint(model)})
    assert fingerprint(open_model(found, "x.npz")) == fingerprint(model)
    kept = model.config.replace(budget="25%:motion")
    part = {"budget": "25%:motion", "fingerprint": fingerprint(tubevit.load_model("runs_a", budget="25%:motion"))}
    assert open_model(Features(**vars(found) | part), "x.npz").config == kept
    tubevit.save_model(tubevit.load_model("runs_a", budget="50%"), "with_a_budget")
    assert open_model(found, "x.npz", "with_a_budget").config == model.config
    (tmp_path / "runs_a").rename("moved")
    assert open_model(found, "x.npz", "moved").config == model.config
    tubevit.save_model(tubevit.load_model("moved", num_classes=2), "other_heads")
    assert open_model(found, "x.npz", "other_heads").config.heads != model.config.heads
    with pytest.raises(UserError, match="x.npz was made with runs_a .*, and runs_b is another model .*--checkpoint"):
        open_model(found, "x.npz", "runs_b")
    with pytest.raises(UserError, match="x.npz was made with runs_a: unknown checkpoint 'runs_a'.*--checkpoint"):
        open_model(found, "x.npz")
    with pytest.raises(UserError, match="^unknown checkpoint 'runs_a'"):
        open_model(found, "x.npz", "runs_a")
    (tmp_path / "runs_b").rename("runs_a")
    with pytest.raises(UserError, match="what it is now is another model"):
        open_model(found, "x.npz")
