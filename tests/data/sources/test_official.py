"""Something-Something v2, Charades, UCF101, HMDB51 and ImageNet as published, with made-up contents."""

import json
import pathlib
import random

import numpy as np
import pytest
import tensorflow_datasets

from tubevit.data.sources import open_source
from tubevit.data.sources.imagenet import in_index_order, validation_labels
from tubevit.data.sources.splits import held_out_beside, training_split
from tubevit.errors import UserError

TFDS = pathlib.Path(tensorflow_datasets.__file__).parent


@pytest.fixture
def files(tmp_path):
    """`files({path: text}, *clips)`: writes them below a folder, clips empty; returns it as text."""

    def write(lists, *clips):
        for file, text in (lists | dict.fromkeys(clips, "")).items():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path)

    return write


def found(source):
    """{file name: class}"""
    return {pathlib.Path(key).name: source.classes[i] for key, i in zip(source.keys, source.labels)}


SSV2 = {
    "labels.json": {"Pushing something": "1", "Moving something, something else": "0", "Turning something": "2"},
    "train.json": [
        {"id": "74225", "label": "pushing a cup", "template": "Pushing [something]"},
        {"id": 9, "label": "moving x, y", "template": "Moving [something], [something else]", "placeholders": ["x"]},
    ],
    "validation.json": [{"id": "3", "label": "turning z", "template": "Turning [something]"}],
    "test.json": [{"id": "4"}],
}


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_something_something(files, prefix):
    lists = {f"lists/{prefix}{name}": json.dumps(content) for name, content in SSV2.items()}
    root = files(lists, "clips/74225.webm", "clips/x/9.webm", "clips/3.webm", "clips/4.webm")
    name = f"ssv2:{root}/lists@{root}/clips"
    train = open_source(name, "train")
    # In the order of the label map's indices, which is neither that of the file nor the alphabet.
    assert train.classes == ("Moving something, something else", "Pushing something", "Turning something")
    assert found(train) == {"74225.webm": "Pushing something", "9.webm": "Moving something, something else"}
    assert train.notes == (f"{name}: a list of 3 classes; ssv2 has 174: indices follow this list",)
    assert found(open_source(name, "validation")) == {"3.webm": "Turning something"}
    assert len(open_source(name, "all")) == 3
    with pytest.raises(UserError, match="expected the official list test-answers.csv"):
        open_source(name, "test")
    files({"lists/test-answers.csv": "4;Turning something\n"})
    assert found(open_source(name, "test")) == {"4.webm": "Turning something"}
    assert len(open_source(name, "all")) == 4
    with pytest.raises(UserError, match="unknown split of .* 'tset'"):
        open_source(name, "tset")


def test_the_label_map_is_ordered_by_number(files):
    label_map = {f"Label {i:02d} of something": str((i * 7) % 174) for i in range(174)}
    lists = {"labels.json": json.dumps(label_map), "train.json": '[{"id": 1, "template": "Label 05 of [something]"}]'}
    root = files(lists, "clips/1.webm")
    source = open_source(f"ssv2:{root}@{root}/clips", "train")
    assert source.notes == () and source.labels.tolist() == [35]
    assert all(source.classes[int(index)] == label for label, index in label_map.items())


@pytest.mark.parametrize(
    "file, content, expected",
    [
        ("labels.json", "{", "cannot read .*labels.json as json"),
        ("labels.json", "[]", "labels.json: expected a json object"),
        ("labels.json", '{"a": "x"}', 'labels.json: expected {"template": "index"}; found'),
        ("labels.json", '{"a": "0", "b": "2"}', "with the indices 0 to 1, each once"),
        ("labels.json", '{"Pushing something": "0"}', "9: unknown label 'Moving something, something else'"),
        ("train.json", '[{"id": 3}]', "train.json entry 0: expected an object with id and template"),
        ("train.json", "{}", "train.json: expected a json array"),
        ("train.json", "[]", "the list is empty"),
        ("train.json", None, "expected the official list something-something-v2-train.json or train.json"),
    ],
)
def test_malformed_lists_of_something_something(files, file, content, expected):
    lists = {name: json.dumps(content) for name, content in SSV2.items()} | ({file: content} if content else {})
    if content is None:
        del lists[file]
    root = files(lists, "clips/74225.webm", "clips/9.webm")
    with pytest.raises(UserError, match=expected):
        open_source(f"ssv2:{root}@{root}/clips", "train")


CHARADES = {
    "Charades_v1_classes.txt": "c000 Holding some clothes\nc001 Washing a window \nc002 Sitting in a chair\n",
    "Charades_v1_train.csv": "id,subject,script,actions,length\n"
    'AAAAA,X1,"He says ""no"", then\nsits",c002 11.90 21.20;c000 0.00 12.60;c002 25.00 30.00,31.0\n'
    "BBBBB,X2,nothing,,12.5\nGONE0,X3,x,c001 0.0 1.0,9\n",
    "Charades_v1_test.csv": "id,subject,script,actions,length\nCCCCC,X4,x,c001 1.00 2.00,8\n",
}


def test_charades(files):
    root = files(CHARADES, "clips/AAAAA.mp4", "clips/BBBBB.mp4", "clips/CCCCC.mp4")
    name = f"charades:{root}@{root}/clips"
    train = open_source(name, "train")
    assert train.classes == ("Holding some clothes", "Washing a window", "Sitting in a chair")
    assert train.labels.dtype == np.float32 and train.labels.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert train.notes[0] == f"{name}: 2 of 3 listed clips were found" and "charades has 157" in train.notes[1]
    assert [open_source(name, split).labels.tolist() for split in ("val", "validation", "test")] == [[[0, 1, 0]]] * 3
    assert len(open_source(name, "all")) == 3 and open_source(name, "all").listed == 4
    with pytest.raises(UserError, match="unknown split of .* 'tests'; did you mean 'test'"):
        open_source(name, "tests")


@pytest.mark.parametrize(
    "file, content, expected",
    [
        ("Charades_v1_classes.txt", "c000 a\nc002 b\n", "expected c001 and the name of a class; found c002 b"),
        ("Charades_v1_classes.txt", "c000 a\nc001 a\n", "expected distinct class names"),
        ("Charades_v1_train.csv", "id,actions\nA,c003 0 1\n", "train.csv line 2: unknown action 'c003'"),
        ("Charades_v1_train.csv", "id,labels\nA,c003 0 1\n", "line 1: expected the header id,...,actions"),
    ],
)
def test_malformed_lists_of_charades(files, file, content, expected):
    root = files(CHARADES | {file: content}, "clips/AAAAA.mp4")
    with pytest.raises(UserError, match=expected):
        open_source(f"charades:{root}@{root}/clips", "train")


UCF101 = {
    "classInd.txt": "1 Yoga\r\n2 ApplyEyeMakeup\r\n",
    "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 2\r\nYoga/v_Yoga_g01_c01.avi 1\r\n\r\n",
    "testlist01.txt": "Yoga/v_Yoga_g02_c02.avi\r\n",
    "trainlist02.txt": "Yoga/v_Yoga_g02_c02.avi 1\n",
    "testlist02.txt": "Yoga/v_Yoga_g01_c01.avi\nApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n",
}


def test_splits_beside_each_other():
    """Of UCF101 and HMDB51, whose test clips of one split are training clips of another."""
    pairs = {"test": "train", "val": "train", "validation": "train", "test2": "train2", "TEST3 ": "train3"}
    assert {name: training_split(name) for name in pairs} == pairs
    assert {training_split(name) for name in ("train", "Training", "train2", "train3", "all")} == {None}
    tested = {"train2": "test2", "train3": "test3", "train": None, "test2": None}
    assert {name: held_out_beside(name) for name in tested} == tested


@pytest.mark.parametrize("folders", [("Yoga/", "ApplyEyeMakeup/"), ("", "")])
def test_ucf101(files, folders):
    clips = [f"{folders[0]}v_Yoga_g0{i}_c0{i}.avi" for i in (1, 2)] + [f"{folders[1]}v_ApplyEyeMakeup_g08_c01.mp4"]
    root = files(UCF101, *(f"clips/{clip}" for clip in clips))
    name = f"ucf101:{root}@{root}/clips"
    train = open_source(name, "train")
    assert train.classes == ("Yoga", "ApplyEyeMakeup")  # in the order of classInd.txt
    assert found(train) == {"v_Yoga_g01_c01.avi": "Yoga", "v_ApplyEyeMakeup_g08_c01.mp4": "ApplyEyeMakeup"}
    assert list(found(open_source(name, "test"))) == list(found(open_source(name, "train2"))) == ["v_Yoga_g02_c02.avi"]
    assert found(open_source(name, "test2")) == found(train)
    assert len(open_source(name, "all")) == 3
    with pytest.raises(UserError, match="expected the official list trainlist03.txt"):
        open_source(name, "train3")
    with pytest.raises(UserError, match="unknown split of .* 'train4'; did you mean 'train"):
        open_source(name, "train4")


@pytest.mark.parametrize(
    "file, content, expected",
    [
        ("classInd.txt", "0 Yoga\n1 Archery\n", "expected the indices 1 to 2; found 0 to 1"),
        ("classInd.txt", "1 Yoga\n1 Archery\n", "expected the index and name of a class, each once; found 1 Archery"),
        ("classInd.txt", "Yoga\n", "expected the index and name of a class, each once; found Yoga"),
        ("trainlist01.txt", "v_Yoga_g01_c01.avi 1\n", "line 1: expected Class/clip.avi; found v_Yoga"),
        ("trainlist01.txt", "\nYoga/ \n", "line 2: expected Class/clip.avi; found Yoga/"),
        ("trainlist01.txt", "Yogi/v_Yoga_g01_c01.avi 1\n", "unknown label 'Yogi'; did you mean 'Yoga'"),
    ],
)
def test_malformed_lists_of_ucf101(files, file, content, expected):
    root = files(UCF101 | {file: content}, "clips/v_Yoga_g01_c01.avi")
    with pytest.raises(UserError, match=expected):
        open_source(f"ucf101:{root}@{root}/clips", "train")


HMDB51 = {
    "wave_test_split1.txt": "a b.avi 1 \nc#(1).avi 2 \nd.avi 0 \n",
    "brush_hair_test_split1.txt": "d.avi 2 \ne.avi 1 \n",
    "wave_test_split3.txt": "d.avi 2 \n",
    "brush_hair_test_split3.txt": "e.avi 2 \n",
    "README": "",
    "._wave_test_split1.txt": "\0\5",  # of a Mac
}


def test_hmdb51(files):
    root = files(HMDB51, *(f"clips/{clip}.avi" for clip in ("wave/a b", "wave/c#(1)", "wave/d", "brush_hair/d", "e")))
    name = f"hmdb51:{root}@{root}/clips"
    train, test = open_source(name, "train"), open_source(name, "test")
    assert train.classes == ("brush_hair", "wave")
    assert found(train) == {"a b.avi": "wave", "e.avi": "brush_hair"}
    assert found(test) == {"c#(1).avi": "wave", "d.avi": "brush_hair"}
    # Not the one of the same name in the other class.
    assert f"{root}/clips/brush_hair/d.avi" in test.keys
    assert f"{root}/clips/wave/d.avi" in open_source(name, "test3").keys
    assert len(open_source(name, "all")) == 4  # without the unused clip
    assert found(open_source(name, "test3")) == {"d.avi": "wave", "e.avi": "brush_hair"}
    with pytest.raises(UserError, match="expected the official lists CLASS_test_split2.txt"):
        open_source(name, "train2")
    files({"wave_test_split1.txt": "a.avi 3\n"})
    with pytest.raises(UserError, match="wave_test_split1.txt line 1: expected clip.avi and 0, 1 or 2; found a.avi 3"):
        open_source(name, "train")


@pytest.mark.parametrize("inner", ["", "ILSVRC/Data/CLS-LOC/"])
def test_imagenet(files, inner):
    names = (
        "train/n00000002/n00000002_1.JPEG",
        "train/n00000001/n00000001_7.JPEG",
        "val/n00000003/x.jpeg",
        "test/y.JPEG",
    )
    root = files({}, *(inner + name for name in names), f"{inner}train/n00000001/list.txt", f"{inner}train/none/a.JPEG")
    name = f"imagenet:{root}"
    train = open_source(name, "train")
    assert train.classes == open_source(name, "val").classes == ("n00000001", "n00000002", "n00000003")
    assert found(train) == {"n00000002_1.JPEG": "n00000002", "n00000001_7.JPEG": "n00000001"}
    assert train.notes == (f"{name}: a list of 3 classes; imagenet has 1000: indices follow this list",)
    assert found(open_source(name, "validation")) == {"x.jpeg": "n00000003"}
    assert len(open_source(name, "all")) == 3
    with pytest.raises(UserError, match="unknown split of .* 'test'; "):
        open_source(name, "test")


def test_flat_validation_images_are_labelled_by_number(files):
    # Known from the official ground truth: the first image is n01751748, the second n09193705.
    wnids = (TFDS / "datasets/imagenet2012/labels.txt").read_text().split()
    root = files({}, *(f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 50000)))
    files({}, *(f"train/{wnid}/{wnid}_1.JPEG" for wnid in random.Random(0).sample(wnids, len(wnids))))
    val = open_source(f"imagenet:{root}", "val")
    assert val.notes == () and val.classes == tuple(wnids)  # the order of tensorflow_datasets
    assert list(found(val).values()) == ["n01751748", "n09193705", validation_labels()[-1]]
    assert np.bincount([wnids.index(label) for label in validation_labels()]).tolist() == [50] * 1000
    for classes in (tuple(map(str, range(1000))), tuple(f"a name of class {i}" for i in range(1000))):
        numbered = in_index_order(val, classes)
        assert numbered.classes == classes and "in the order of their WordNet ids" in numbered.notes[-1]
        np.testing.assert_array_equal(numbered.labels, val.labels)
    for classes in (tuple(wnids), tuple(map(str, range(21843)))):  # by name; of another label set
        assert in_index_order(val, classes) is val
    files({}, "val/ILSVRC2012_val_00050001.JPEG")
    with pytest.raises(UserError, match="ILSVRC2012_val_00050001.JPEG: expected .* to 00050000"):
        open_source(f"imagenet:{root}", "val")


def test_imagenet_without_class_folders(files):
    root = files({}, "train/a/x.JPEG", "val/y.JPEG")
    for split in ("train", "val"):
        with pytest.raises(
            UserError, match=f"expected {root}/{split}/n01440764/.*JPEG; found no images in such folders"
        ):
            open_source(f"imagenet:{root}", split)


def test_order_of_the_classes_of_ucf101(files):
    """The official list, shuffled, gives the order that tensorflow_datasets has, which sorting would not."""
    names = (TFDS / "video/ucf101_labels.txt").read_text().split()
    assert len(names) == 101 and names != sorted(names)
    classes = [f"{i} {name}\n" for i, name in enumerate(names, 1)]
    clips = [f"{name}/v_{name}_g01_c01.avi {i}\n" for i, name in enumerate(names, 1)]
    random.Random(0).shuffle(classes)
    random.Random(1).shuffle(clips)
    lists = {"classInd.txt": "".join(classes), "trainlist01.txt": "".join(clips)}
    root = files(lists, *(f"clips/{clip.split()[0]}" for clip in clips))
    source = open_source(f"ucf101:{root}@{root}/clips", "train")
    assert source.classes == tuple(names) and source.notes == ()
    assert all(f"_{name}_" in file for file, name in found(source).items()) and len(source) == 101
