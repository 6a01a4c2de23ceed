import collections

import cv2
import numpy as np
import pytest

from tubevit.data.augment import Augment
from tubevit.data.joint import joint_batches
from tubevit.data.pipeline import Load, dataset_seed, evaluation_batches, iterate, training_batches
from tubevit.data.sources import open_source

RANDOM = Augment(random_crop=True, scale=1.3)


@pytest.fixture(scope="module")
def loads(digits_cache):
    """Clips and images, with their batch sizes."""
    clips, images = open_source("moving_digits", "train"), open_source("still_digits", "train")
    return {"clips": (Load(clips, 8, 8.0, 32, RANDOM), 3), "stills": (Load(images, 8, 8.0, 32, RANDOM), 5)}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """12 images, image i of colour i and label i."""
    folder = tmp_path_factory.mktemp("coloured")
    for i in range(12):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((9, 9, 3), i, np.uint8))
    (folder / "list.csv").write_text("path,label,split\n" + "".join(f"{i}.png,{i},x\n" for i in range(12)))
    return Load(open_source(str(folder / "list.csv"), "x"), 1, None, 4, Augment())


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].keys() == b[name].keys()
            for key in a[name]:
                np.testing.assert_array_equal(a[name][key], b[name][key])
                assert a[name][key].dtype == b[name][key].dtype


@pytest.fixture(scope="module")
def reference(loads):
    """The batches of steps 0 to 5, made one by one."""
    batches = joint_batches(loads, 0, range(6))
    return [batches[i] for i in range(6)]


def test_one_sub_batch_of_each(reference):
    for batch in reference:
        assert list(batch) == ["clips", "stills"]
        assert batch["clips"]["pixels"].shape == (3, 8, 32, 32, 3)
        assert batch["stills"]["pixels"].shape == (5, 32, 32, 3)
        assert batch["clips"]["label"].shape == (3,) and batch["stills"]["label"].shape == (5,)
        assert {batch[name]["pixels"].dtype for name in batch} == {np.dtype(np.uint8)}
    pixels = [batch["clips"]["pixels"].tobytes() for batch in reference]
    assert len(set(pixels)) == 6


@pytest.mark.parametrize("threads, workers", [(0, 0), (1, 0), (2, 0), (4, 0), (1, 1)])
def test_batches_do_not_depend_on_threads_and_workers(loads, reference, threads, workers):
    assert_same(list(iterate(joint_batches(loads, 0, range(6)), threads, workers)), reference)


@pytest.mark.parametrize("start", [1, 4, 5, 6])
def test_batches_follow_from_the_step_alone(loads, reference, start):
    assert_same(list(iterate(joint_batches(loads, 0, range(start, 6)), 2)), reference[start:])


def test_a_batch_follows_from_the_name_and_not_from_other_data_sets(loads, reference):
    alone = joint_batches({"stills": loads["stills"]}, 0, range(6))
    assert_same([alone[i] for i in range(6)], [{"stills": batch["stills"]} for batch in reference])
    renamed = joint_batches({"photos": loads["stills"]}, 0, range(1))[0]
    assert (renamed["photos"]["pixels"] != reference[0]["stills"]["pixels"]).any()


def test_seeds_differ(loads, reference):
    other = joint_batches(loads, 1, range(1))[0]
    for name in loads:
        assert (other[name]["pixels"] != reference[0][name]["pixels"]).any()
    seeds = {dataset_seed(seed, name) for seed in range(50) for name in loads}
    assert len(seeds) == 100 and all(0 <= seed < 2**32 for seed in seeds)


def test_every_file_is_augmented_anew_in_every_epoch(loads):
    load, _ = loads["clips"]
    batches = training_batches(load, 24, 0)
    first, second = (batches[i]["pixels"] for i in range(2))
    assert not {clip.tobytes() for clip in first} & {clip.tobytes() for clip in second}


@pytest.mark.parametrize("size", [1, 5, 12])
def test_epochs_cover_every_file_once(coloured, size):
    batches = training_batches(coloured, size, 7)
    stream = np.concatenate([batches[i]["label"] for i in range(36 // size + 1)])
    pixels = np.concatenate([batches[i]["pixels"][:, 0, 0, 0] for i in range(36 // size + 1)])
    np.testing.assert_array_equal(stream, pixels)  # labels go with their files
    epochs = stream[:36].reshape(3, 12)
    assert (np.sort(epochs, axis=1) == np.arange(12)).all()
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(12))}) == 4  # shuffled, each time anew


@pytest.mark.parametrize("size", [1, 4, 5, 12, 20])
def test_evaluation_takes_every_file_once_in_order(coloured, size):
    batches = list(iterate(evaluation_batches(coloured, size, 0), 2))
    assert all(batch["pixels"].shape == (size, 4, 4, 3) and batch["mask"].shape == (size,) for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels[mask > 0].tolist() == list(range(12)) and mask.sum() == 12 and mask.dtype == np.float32
    assert len(mask) - 12 < size and (labels[mask == 0] == 11).all()


def test_the_position_in_time_is_drawn(digits_cache):
    """Clips half as long as the files begin anywhere in the first half."""
    source = open_source("moving_digits", "train")
    load = Load(source, 8, 8.0, 64, Augment(random_crop=True))
    whole = Load(source, 16, 8.0, 64, Augment())(0, None)["pixels"]
    starts = collections.Counter()
    for seed in range(60):
        clip = load(0, np.random.default_rng(seed))["pixels"]
        matches = [start for start in range(9) if (whole[start : start + 8] == clip).all()]
        starts[matches[0]] += 1
    assert set(range(1, 8)) <= set(starts) <= set(range(9))
