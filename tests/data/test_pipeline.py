import collections
import dataclasses
import errno
import itertools
import os

import cv2
import numpy as np
import pytest

from tests.data.clips import indices, write_clip
from tubevit.data.augment import Augment
from tubevit.data.decode import decode_clip
from tubevit.data.joint import joint_batches
from tubevit.data.pipeline import BatchShards, SampleLoader, dataset_seed, evaluation_rows, iterate, training_rows
from tubevit.data.sources import open_source
from tubevit.data.views import ONE_VIEW, Views
from tubevit.errors import DecodeError, RunError, UserError

RANDOM = Augment(random_crop=True, scale=1.3)


@pytest.fixture(scope="module")
def loads(digits_cache):
    """Clips and images, with their batch sizes."""
    clips, images = open_source("moving_digits", "train"), open_source("still_digits", "train")
    return {
        "clips": (SampleLoader(clips, 8, 8.0, 32, RANDOM), 3),
        "stills": (SampleLoader(images, 8, 8.0, 32, RANDOM), 5),
    }


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """12 images, image i of colour i and label i."""
    folder = tmp_path_factory.mktemp("coloured")
    for i in range(12):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((9, 9, 3), i, np.uint8))
    (folder / "list.csv").write_text("path,label,split\n" + "".join(f"{i}.png,{i},val\n" for i in range(12)))
    return SampleLoader(open_source(str(folder / "list.csv"), "val"), 1, None, 4, Augment())


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].keys() == b[name].keys()
            for key in a[name]:
                np.testing.assert_array_equal(a[name][key], b[name][key])
                assert a[name][key].dtype == b[name][key].dtype


def take(batches, count):
    """The first batches of an iterator, which is closed."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


@pytest.fixture(scope="module")
def reference(loads):
    """The batches of steps 0 to 5."""
    return take(joint_batches(loads, 0), 6)


def test_one_sub_batch_of_each(reference):
    for batch in reference:
        assert list(batch) == ["clips", "stills"]
        assert batch["clips"]["pixels"].shape == (3, 8, 32, 32, 3)
        assert batch["stills"]["pixels"].shape == (5, 32, 32, 3)
        assert batch["clips"]["label"].shape == (3,) and batch["stills"]["label"].shape == (5,)
        assert {batch[name]["pixels"].dtype for name in batch} == {np.dtype(np.uint8)}
        assert (batch["clips"]["broken"] == -1).all() and batch["clips"]["broken"].shape == (3,)
    pixels = [batch["clips"]["pixels"].tobytes() for batch in reference]
    assert len(set(pixels)) == 6


@pytest.mark.parametrize("threads, workers", [(1, 0), (2, 0), (4, 0), (2, 3)])
def test_batches_do_not_depend_on_threads_and_workers(loads, reference, threads, workers):
    assert_same(take(joint_batches(loads, 0, threads=threads, workers=workers), 6), reference)


@pytest.mark.parametrize("hosts, workers", [(2, 0), (4, 0), (4, 3)])
def test_hosts_share_the_rows_of_every_batch(coloured, hosts, workers):
    """12 files in batches of 8: an epoch ends within the second batch, and again after the third."""
    rows = training_rows(coloured, 3)
    whole = take(iterate(rows, 8), 5)
    parts = [
        take(iterate(rows, 8, shards=BatchShards((i,), hosts), workers=workers if i == 1 else 0), 5)
        for i in range(hosts)
    ]
    joined = [{key: np.concatenate([part[key] for part in of_step]) for key in whole[0]} for of_step in zip(*parts)]
    assert_same([{"x": batch} for batch in joined], [{"x": batch} for batch in whole])
    assert len({batch["label"].tobytes() for batch in whole}) == 5


@pytest.mark.parametrize("start", [1, 4, 5])
def test_batches_follow_from_the_step_alone(loads, reference, start):
    assert_same(take(joint_batches(loads, 0, first=start, threads=2), 6 - start), reference[start:])


def test_a_batch_follows_from_the_name_and_not_from_other_data_sets(loads, reference):
    alone = take(joint_batches({"stills": loads["stills"]}, 0), 6)
    assert_same(alone, [{"stills": batch["stills"]} for batch in reference])
    (renamed,) = take(joint_batches({"photos": loads["stills"]}, 0), 1)
    assert (renamed["photos"]["pixels"] != reference[0]["stills"]["pixels"]).any()


def test_seeds_differ(loads, reference):
    (other,) = take(joint_batches(loads, 1), 1)
    for name in loads:
        assert (other[name]["pixels"] != reference[0][name]["pixels"]).any()
    seeds = {dataset_seed(seed, name) for seed in range(50) for name in loads}
    assert len(seeds) == 100 and all(0 <= seed < 2**32 for seed in seeds)


def test_every_file_is_augmented_anew_in_every_epoch(loads):
    load, _ = loads["clips"]
    rows = training_rows(load, 0)
    first, second = ({rows[i]["pixels"].tobytes() for i in range(start, start + 24)} for start in (0, 24))
    assert not first & second


@pytest.mark.parametrize("size", [1, 5, 12])
def test_epochs_cover_every_file_once(coloured, size):
    batches = take(iterate(training_rows(coloured, 7), size), 36 // size + 1)
    stream = np.concatenate([batch["label"] for batch in batches])
    pixels = np.concatenate([batch["pixels"][:, 0, 0, 0] for batch in batches])
    np.testing.assert_array_equal(stream, pixels)  # labels go with their files
    epochs = stream[:36].reshape(3, 12)
    assert (np.sort(epochs, axis=1) == np.arange(12)).all()
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(12))}) == 4  # shuffled, each time anew


@pytest.mark.parametrize("size", [1, 4, 5, 12, 20])
def test_evaluation_takes_every_file_once_in_order(coloured, size):
    batches = list(iterate(evaluation_rows(coloured, ONE_VIEW, size, 0), size, threads=2))
    assert all(batch["pixels"].shape == (size, 1, 4, 4, 3) and batch["mask"].shape == (size,) for batch in batches)
    mask, files, pixels = (np.concatenate([batch[key] for batch in batches]) for key in ("mask", "file", "pixels"))
    assert files[mask > 0].tolist() == pixels[mask > 0, 0, 0, 0, 0].tolist() == list(range(12))
    assert mask.sum() == 12 and mask.dtype == np.float32 and len(mask) - 12 < size


def test_views_of_a_file(digits_cache, tmp_path):
    write_clip(tmp_path / "a.mp4", range(0, 4000, 40), size=(32, 96))
    (tmp_path / "a.csv").write_text("path,label,split\na.mp4,0,test\n")
    load = SampleLoader(open_source(str(tmp_path / "a.csv"), "test"), 10, 25.0, 32, Augment())
    rows = evaluation_rows(load, Views(3, 3), 3, 0)
    assert len(rows) == 3 and rows[0]["pixels"].shape == (3, 10, 32, 32, 3)
    clip = decode_clip(load.source.media(0))
    for row, start in zip(rows, (0, 45, 90)):  # beginning, middle, end
        for view, left in zip(row["pixels"], (0, 32, 64)):
            np.testing.assert_array_equal(view, clip[start : start + 10, :, left : left + 32])
    assert indices(clip[45:46]) == [45]


def test_where_clips_lie(digits_cache, tmp_path):
    """Of 100 frames at 25 per second: at k/n of the rest, or 2 x 10 and 10 frames spread over all."""
    write_clip(tmp_path / "a.mp4", range(0, 4000, 40), size=(32, 96))
    (tmp_path / "a.csv").write_text("path,label,split\na.mp4,0,test\n")
    load = SampleLoader(open_source(str(tmp_path / "a.csv"), "test"), 10, 25.0, 28, Augment())
    clip, every, tick = decode_clip(load.source.media(0)), np.arange(10), 100 / 10
    expected = {
        Views(1, 3, "start"): [every],
        Views(4, 3, "start"): [int(90 * k / 4) + every for k in range(4)],
        Views(2, 3, "spread"): [(tick * every).astype(int), (tick / 2 + tick * every).astype(int)],
        Views(1, 3, "spread"): [(tick / 2 + tick * every).astype(int)],
    }
    for views, frames in expected.items():
        rows = evaluation_rows(load, dataclasses.replace(views, short_side=32), 1, 0)
        assert len(rows) == len(frames)
        for row, chosen in zip(rows, frames):
            for view, left in zip(row["pixels"], (0, 34, 68)):  # 28 of 32 rows: 2 above and below
                np.testing.assert_array_equal(view, clip[chosen, 2:30, left : left + 28])


def test_squares_are_inside_the_frame(coloured):
    with pytest.raises(UserError, match="eval.short_side must be at least the 4 pixels of the input; found 3"):
        evaluation_rows(coloured, Views(short_side=3), 1, 0)
    with pytest.raises(UserError, match="unknown placement of clips 'evn'; did you mean 'even'"):
        Views(placement="evn")
    with pytest.raises(UserError, match="unknown average of views 'logit'; did you mean 'logits'"):
        Views.from_keys({"views": "4x3", "average": "logit"})
    keys = {"views": "4x3", "clip_placement": "start", "short_side": 256, "average": "logits"}
    assert Views.from_keys(keys) == Views(4, 3, "start", 256, "logits") and Views.from_keys({}) == ONE_VIEW


@pytest.fixture
def partly_broken(coloured, tmp_path):
    """The coloured images, of which 3 and 8 are broken."""
    keys = list(coloured.source.keys)
    for i in (3, 8):
        keys[i] = str(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return dataclasses.replace(coloured, source=dataclasses.replace(coloured.source, keys=tuple(keys)))


def test_broken_files_are_replaced_alike_every_time(coloured, partly_broken):
    whole, rows, again = (training_rows(load, 5) for load in (coloured, partly_broken, partly_broken))
    replaced = collections.Counter()
    for i in range(36):
        row = rows[i]
        if whole[i]["label"] in (3, 8):
            assert row["broken"] == whole[i]["label"] != row["label"] == row["pixels"][0, 0, 0] and row["label"] != 3
            replaced[int(row["broken"])] += 1
        else:
            assert row["broken"] == -1 and row["label"] == whole[i]["label"]
        assert_same([{"x": row}], [{"x": again[i]}])
    assert replaced == {3: 3, 8: 3}


def test_broken_files_are_left_out_of_evaluation(partly_broken):
    rows = list(evaluation_rows(partly_broken, ONE_VIEW, 5, 0))
    assert [int(row["broken"]) for row in rows if row["broken"] >= 0] == [3, 8]
    assert [int(row["file"]) for row in rows if row["mask"]] == [i for i in range(12) if i not in (3, 8)]
    assert "3.png" in partly_broken.reason(3) and "is damaged in places" in partly_broken.reason(4)


def test_nothing_but_broken_files_is_an_error(coloured, tmp_path):
    keys = tuple(str(tmp_path / f"{i}.png") for i in range(12))
    load = dataclasses.replace(coloured, source=dataclasses.replace(coloured.source, keys=keys))
    load.source.__dict__["modality"] = "image"  # told by the first file
    with pytest.raises(DecodeError, match="20 files in a row cannot be decoded, the last: cannot read .*png"):
        training_rows(load, 0)[0]


def test_errors_of_the_system_name_the_file(coloured):
    def read(index):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = dataclasses.replace(coloured.source, keys=("a/0.mp4", "a/1.mp4"), read=read)
    with pytest.raises(RunError, match="cannot read a/1.mp4: Input/output error"):
        dataclasses.replace(coloured, source=source).decode(1, 0.5)


def test_messages_name_what_has_no_path(coloured):
    source = dataclasses.replace(coloured.source, keys=("shard 3, record 7",), read=lambda index: b"\xff\xd8\xff0")
    with pytest.raises(DecodeError, match="cannot read shard 3, record 7 as an image"):
        dataclasses.replace(coloured, source=source).decode(0, 0.5)


@pytest.mark.parametrize("text", ["4", "4x", "0x3", "x3", "4x3x1", "4×3", "-1x1"])
def test_views_are_checked(text):
    with pytest.raises(UserError, match="TEMPORALxSPATIAL, for example 4x3; found"):
        Views.from_text(text)
    assert str(Views.from_text("4x3")) == "4x3" and Views.from_text("10x1") == Views(10, 1)


def test_the_position_in_time_is_drawn(digits_cache):
    """Clips half as long as the files begin anywhere in the first half."""
    source = open_source("moving_digits", "train")
    load = SampleLoader(source, 8, 8.0, 64, Augment(random_crop=True))
    whole = SampleLoader(source, 16, 8.0, 64, Augment()).augmented(0, None)[0]
    starts = collections.Counter()
    for seed in range(60):
        clip, _ = load.augmented(0, np.random.default_rng(seed))
        matches = [start for start in range(9) if (whole[start : start + 8] == clip).all()]
        starts[matches[0]] += 1
    assert set(range(1, 8)) <= set(starts) <= set(range(9))


def test_speed_changes_the_time_between_frames(tmp_path):
    """Of 200 frames at 25 per second; 6 at 5 per second are 5 apart, from a half to twice as many with a speed of 2."""
    write_clip(tmp_path / "a.mp4", range(0, 8000, 40), size=(64, 64))
    (tmp_path / "a.csv").write_text("path,label,split\na.mp4,0,train\n")
    load = SampleLoader(open_source(str(tmp_path / "a.csv"), "train"), 6, 5.0, 64, Augment(speed=2.0))
    apart = []
    for seed in range(30):
        steps = np.diff(indices(load.augmented(0, np.random.default_rng(seed))[0]))
        assert np.ptp(steps) <= 1
        apart.append(steps.mean())
    assert 2.4 < min(apart) < 3 and 8 < max(apart) < 10.1
