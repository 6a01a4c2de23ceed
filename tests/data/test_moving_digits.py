import csv
import hashlib

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tubevit.data import moving_digits
from tubevit.data.decode import decode_clip, decode_image
from tubevit.data.moving_digits import (
    DIRECTIONS,
    FRAMES,
    SIZE,
    SPLITS,
    make_moving_digits,
    render_clip,
    velocity,
    write_video,
)
from tubevit.errors import UserError

OPPOSITE = {name: DIRECTIONS[(i + 4) % 8] for i, name in enumerate(DIRECTIONS)}


def rows(folder, name="motion"):
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_deterministic_to_the_byte(tmp_path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        counts = make_moving_digits(tmp_path / name, seed, train_clips=8, train_digits=5, held_out_digits=3)
        assert counts == {
            "train_clips": 8, "val_clips": 12, "test_clips": 12, "train_images": 20, "val_images": 6, "test_images": 6,
        }  # fmt: skip
    first, again, other = (digest(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again and len(first) == 32 + 32 + 3
    assert not {first[name] for name in first if name.endswith(".mp4")} & set(other.values())
    make_moving_digits(tmp_path / "other", 3, 8, 5, 3)  # written anew, with nothing left over
    assert digest(tmp_path / "other") == first


def test_no_digit_is_in_two_splits(draws):
    """All digits are in the images; those of the training clips are 300 of theirs."""
    folder, _, _ = draws
    clips, images = (
        {split: {int(row["instance"]) for row in rows(folder, name) if row["split"] == split} for split in SPLITS}
        for name in ("motion", "still_digits")
    )
    assert sum(len(found) for found in images.values()) == len(set.union(*images.values())) == 1797
    assert clips["train"] < images["train"] and len(clips["train"]) == 300
    assert all(clips[split] == images[split] and len(clips[split]) == 225 for split in ("val", "test"))
    digits = moving_digits.digit_instances()[1]
    for seed in range(3):
        split = moving_digits.split_instances(seed)
        assert sorted(np.concatenate(list(split.values()))) == list(range(1797))
        assert all(np.bincount(digits[split[name]]).min() >= 20 for name in ("val", "test"))  # of 22.5


def test_labels_are_balanced_and_agree(digits_cache):
    motion, both = rows(digits_cache), rows(digits_cache, "digit_motion")
    for split in SPLITS:
        labels = [row["label"] for row in motion if row["split"] == split]
        assert {labels.count(name) for name in DIRECTIONS} == {len(labels) // 8}
    digits = moving_digits.digit_instances()[1]
    for one, two in zip(motion, both, strict=True):
        assert one["path"] == two["path"] and two["label"] == f"{digits[int(one['instance'])]}_{one['label']}"
        step = velocity(DIRECTIONS.index(one["label"]), 1.0)
        drawn = np.array([float(one["velocity_row"]), float(one["velocity_column"])])
        speed = np.linalg.norm(drawn)
        assert 1.5 <= speed <= 3 and np.abs(drawn / speed - step).max() < 1e-4
    for row in rows(digits_cache, "still_digits"):
        assert int(row["label"]) == digits[int(row["instance"])] and f"/{row['instance']:0>4}_" in row["path"]


def test_directions_are_pairs_of_reversals():
    for i in range(8):
        np.testing.assert_allclose(velocity(i, 2.0), -velocity((i + 4) % 8, 2.0), atol=1e-12)
    assert len({tuple(np.round(velocity(i, 1.0), 6)) for i in range(8)}) == 8
    assert velocity(DIRECTIONS.index("down"), 1.0) @ [1, 0] == pytest.approx(1)
    assert velocity(DIRECTIONS.index("up_right"), 1.0) == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_every_held_out_clip_has_its_exact_reversal(digits_cache):
    test = {row["path"]: row for row in rows(digits_cache) if row["split"] != "train"}
    forward = [path for path in test if "reversed" not in path]
    assert len(forward) == 8 and len(test) == 16
    for path in forward:
        there, back = test[path], test[path.replace(".mp4", "_reversed.mp4")]
        clip, backwards = (decode_clip(digits_cache / row["path"]) for row in (there, back))
        assert clip.shape == (FRAMES, SIZE, SIZE, 3)
        np.testing.assert_array_equal(clip[::-1], backwards)
        assert np.abs(clip[0].astype(int) - clip[-1]).max() > 50
        assert back["label"] == OPPOSITE[there["label"]] and back["instance"] == there["instance"]
        end = np.array([float(there[axis]) + 15 * float(there[f"velocity_{axis}"]) for axis in ("row", "column")])
        start = np.array([float(back["row"]), float(back["column"])])
        np.testing.assert_allclose(np.exp(2j * np.pi * start / SIZE), np.exp(2j * np.pi * end / SIZE), atol=2e-4)


@pytest.fixture(scope="module")
def draws(tmp_path_factory):
    """The folder of the data, and positions (clip, frame, 2) and labels of its 8,000 training clips as drawn."""
    folder = tmp_path_factory.mktemp("draws")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "FRAMES", 1)  # one frame is rendered and none encoded: it takes long
        patch.setattr(moving_digits, "write_video", lambda path, clip: None)
        patch.setattr(moving_digits, "_IMAGES", {split: 1 for split in SPLITS})
        make_moving_digits(folder, 0, train_clips=8_000)
    train = [row for row in rows(folder) if row["split"] == "train"]
    start, step = (
        np.array([[float(row[prefix + axis]) for axis in ("row", "column")] for row in train])
        for prefix in ("", "velocity_")
    )
    positions = (start[:, None] + np.arange(FRAMES)[:, None] * step[:, None]) % SIZE
    return folder, positions, np.array([DIRECTIONS.index(row["label"]) for row in train])


def accuracy(features, labels, neighbours=25):
    """Held-out, of a classifier of points on the torus."""
    angles = features * 2 * np.pi / SIZE
    on_circles = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    model = KNeighborsClassifier(neighbours).fit(on_circles[:6000], labels[:6000])
    return model.score(on_circles[6000:], labels[6000:])


def test_no_single_frame_gives_the_direction_away(draws):
    _, positions, labels = draws
    for frame in (0, 1, 7, 14, 15):
        assert accuracy(positions[:, frame], labels) < 0.16
    assert accuracy(positions[:, 5] - positions[:, 0], labels) > 0.95  # two frames do, so the test can tell


def test_the_digit_is_where_the_csv_says(monkeypatch):
    """Squares in place of digits: their circular centroid in the pixels is the drawn position in every frame."""
    grid = np.exp(2j * np.pi * (np.arange(SIZE) + 0.5) / SIZE)

    def render(value, seed):
        monkeypatch.setattr(moving_digits, "digit_instances", lambda: (np.full((1, 8, 8), value, np.float32), None))
        return render_clip(0, seed % 8, np.random.default_rng(seed))

    for seed in range(16):
        (clip, drawn), (background, _) = render(1, seed), render(0, seed)
        weight = (clip.astype(float) - background).sum(axis=-1) / (clip.max((0, 1, 2)) - background.astype(float)).sum(
            -1
        )
        assert 19.5**2 < weight.sum(axis=(1, 2)).min() and weight.sum(axis=(1, 2)).max() < 28.5**2
        centroid = np.stack([np.angle(weight.sum(axis=axis) @ grid) for axis in (2, 1)], axis=1) * SIZE / 2 / np.pi
        step = np.array([drawn["velocity_row"], drawn["velocity_column"]])
        expected = np.array([drawn["row"], drawn["column"]]) + np.arange(FRAMES)[:, None] * step
        apart = (centroid - expected + SIZE / 2) % SIZE - SIZE / 2
        assert -0.55 < apart.min() and apart.max() < 0.05  # squares of odd size lie half a pixel aside
        assert np.ptp(apart, axis=0).max() < 0.05  # the same in every frame


def test_images_come_from_the_world_of_the_clips(digits_cache):
    """Background, colour and size of an image and of a clip with the same numbers are equal; the digit is whole."""
    stored = rows(digits_cache, "still_digits")
    assert len({(digits_cache / row["path"]).read_bytes() for row in stored}) == len(stored) == 80 + 4 + 4
    for row in stored[:3]:
        image = decode_image(digits_cache / row["path"])
        instance, number = int(row["instance"]), int(row["path"][-5])
        seed = [0, 3, instance, number]
        np.testing.assert_array_equal(image, moving_digits.render_image(instance, np.random.default_rng(seed)))
        clip, _ = render_clip(instance, 0, np.random.default_rng(seed))
        bright = [np.sort(frame.max(axis=-1).ravel())[-20:].mean() for frame in (image, clip[0])]
        assert abs(bright[0] - bright[1]) < 15
        background = np.median(clip, axis=0)
        digit = np.abs(image - background).max(axis=-1) > 60
        extent = [np.ptp(np.flatnonzero(digit.any(axis=axis))) + 1 for axis in (0, 1)]
        assert 12 < max(extent) <= 28 and digit.sum() > 40


def test_write_video_codes_every_frame_by_itself(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    write_video(tmp_path / "a.mp4", clip)
    write_video(tmp_path / "b.mp4", clip[::-1])
    np.testing.assert_array_equal(decode_clip(tmp_path / "a.mp4")[::-1], decode_clip(tmp_path / "b.mp4"))


def test_folders_that_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file", "file/below"):
        with pytest.raises(UserError, match=f"{tmp_path}/{name}"):
            make_moving_digits(tmp_path / name, 0, 1, 1, 1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    for clips, digits, held_out in ((0, 1, 1), (1, 0, 1), (1, 1348, 1), (1, 1, 0), (1, 1, 226)):
        with pytest.raises(UserError, match=f"expected 1 to 225 held-out .* found {held_out}, {digits} and {clips}"):
            make_moving_digits(tmp_path / "new", 0, clips, digits, held_out)
    assert not (tmp_path / "new").exists()
