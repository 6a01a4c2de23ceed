import cv2
import numpy as np
import pytest

from tubevit.data.sources import open_source
from tubevit.errors import DecodeError, UserError


@pytest.fixture
def write_csv(tmp_path):
    """`write_csv(text)`: a csv beside the files a.png ... t.png; returns its path as text."""
    for name in "abcdefghijklmnopqrst":
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    def write(text, encoding="utf-8"):
        (tmp_path / "labels.csv").write_text(text, encoding=encoding)
        return str(tmp_path / "labels.csv")

    return write


def names(source):
    return [path.rsplit("/", 1)[-1][0] for path in source.keys]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_by_name(write_csv, tmp_path, encoding):
    path = write_csv(
        "label,note,path,split\nwalk,x,files/a.png,train\nrun,,files/b.png,train\n\nsit,y,files/c.png,val\n", encoding
    )
    train = open_source(path, "train")
    assert train.keys == (str(tmp_path / "files/a.png"), str(tmp_path / "files/b.png"))
    assert train.classes == ("run", "sit", "walk")  # of the whole file, sorted: the same for each split
    assert train.labels.tolist() == [2, 0] and train.labels.dtype == np.int32
    assert train.listed_at == (f"{path} line 2", f"{path} line 3")
    assert train.notes == () and train.listed == 2 and not train.multi_label
    assert train.modality == "image"
    assert names(open_source(path, "val")) == ["c"]
    assert open_source(path, "val").listed_at == (f"{path} line 5",)  # the empty line counts
    assert names(open_source(path, "all")) == ["a", "b", "c"]


def test_integer_labels_are_indices(write_csv):
    source = open_source(
        write_csv("path,label,split\nfiles/a.png,10,val\nfiles/b.png,9,val\nfiles/c.png,02,val\n"), "val"
    )
    assert source.classes == tuple(map(str, range(11)))
    assert source.labels.tolist() == [10, 9, 2]
    mixed = open_source(write_csv("path,label,split\nfiles/a.png,10,val\nfiles/b.png,nine,val\n"), "val")
    assert mixed.classes == ("10", "nine")


def test_several_labels(write_csv):
    source = open_source(
        write_csv("path,label,split\nfiles/a.png,run|sit,val\nfiles/b.png,sit,val\nfiles/c.png,walk,test\n"), "val"
    )
    assert source.multi_label and source.labels.dtype == np.float32
    assert source.labels.tolist() == [[1, 1, 0], [0, 1, 0]]
    numbers = open_source(write_csv("path,label,split\nfiles/a.png,3|1,val\nfiles/b.png,01,val\n"), "val")
    assert numbers.labels.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]


def test_without_split_80_20_by_hash(write_csv, tmp_path):
    many = [f"files/{i}.png" for i in range(1000)]
    for name in many:
        (tmp_path / name).touch()
    path = write_csv("path,label\n" + "".join(f"{name},x\n" for name in many))
    train, test, everything = (open_source(path, split) for split in ("train", "test", "all"))
    assert set(train.keys) | set(test.keys) == set(everything.keys) and len(everything.keys) == 1000
    assert not set(train.keys) & set(test.keys)
    assert 0.76 < len(train.keys) / 1000 < 0.84
    assert any("80 %" in note and "20 %" in note for note in train.notes)
    half = write_csv("path,label\n" + "".join(f"{name},x\n" for name in many[::-2]))
    assert set(open_source(half, "test").keys) == set(test.keys) & {str(tmp_path / name) for name in many[::-2]}


def test_missing_files_are_counted(write_csv):
    source = open_source(
        write_csv("path,label,split\nfiles/a.png,x,val\nfiles/none.png,y,val\nfiles/b.png,z,val\n"), "val"
    )
    assert (source.listed, len(source)) == (3, 2)
    assert source.labels.tolist() == [0, 2] and source.classes == ("x", "y", "z")
    assert any("2 of 3" in note for note in source.notes)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "line 1: expected the header path,label[,split]; found nothing"),
        ("files/a.png,x\n", "line 1: expected the header"),
        ("path;label\n", "line 1: expected the header"),
        ("path,label\n", "lists no files"),
        ("path,label\nfiles/a.png,x\nfiles/b.png\n", "line 3: expected 2 columns (path,label); found 1"),
        ("path,label\nfiles/a.png,x,train\n", "line 2: expected 2 columns"),
        ("path,label\nfiles/a.png,\n", "line 2: the label is empty"),
        ("path,label\nfiles/a.png,x\nfiles/b.png,x||y\n", "line 3: the label is empty"),
        ("path,label\n\n,x\n", "line 3: the path is empty"),
        ("path,label,split\nfiles/a.png,x,\n", "line 2: the split is empty"),
        ("path,label,split\nfiles/1.mp4,x,test\n", "none of the 1 listed files exists"),
        ("path,label,split\nfiles/a.png,x,train\n", "unknown split of"),
        ("path,label,split\nfiles/a.png,x,tests\n", "line 2: unknown split 'tests'; did you mean 'test'?"),
        ('path,label\nfiles/a.png,"x\n', "cannot read"),
    ],
)
def test_errors_of_a_csv(write_csv, text, expected):
    path = write_csv(text)
    with pytest.raises(UserError) as error:
        open_source(path, "test")
    assert expected in str(error.value) and path in str(error.value) and "\n" not in str(error.value)


def test_not_a_csv(tmp_path):
    (tmp_path / "clip.csv").write_bytes(b"\x00\xff\xfe" * 99)
    (tmp_path / "folder.csv").mkdir()
    for name, expected in (("clip.csv", "cannot read"), ("folder.csv", "cannot read"), ("no.csv", "does not exist")):
        with pytest.raises(UserError, match=expected):
            open_source(str(tmp_path / name))
    with pytest.raises(UserError, match="unknown source 'moving_digit'; did you mean 'moving_digits'"):
        open_source("moving_digit")


def test_labels_become_those_of_a_model(write_csv):
    path = write_csv("path,label,split\nfiles/a.png,run,val\nfiles/b.png,walk,val\nfiles/c.png,fly,test\n")
    source = open_source(path, "val")
    mapped = source.with_classes(("walk", "sit", "run"))  # `fly` does not occur in this split
    assert mapped.labels.tolist() == [2, 0] and mapped.classes == ("walk", "sit", "run")
    assert mapped.keys == source.keys and mapped.labels.dtype == np.int32
    assert source.with_classes(source.classes) is source
    with pytest.raises(UserError, match=r"line 3: label out of range: unknown label 'walk'; did you mean 'walks'"):
        source.with_classes(("run", "walks"))
    several = open_source(write_csv("path,label,split\nfiles/a.png,run|walk,val\nfiles/b.png,walk,val\n"), "val")
    assert several.with_classes(("walk", "sit", "run")).labels.tolist() == [[1, 0, 1], [1, 0, 0]]
    with pytest.raises(UserError, match="line 2: label out of range"):
        several.with_classes(("walk", "sit"))


def test_integers_index_named_classes(write_csv):
    path = write_csv("path,label,split\nfiles/a.png,2,val\nfiles/b.png,0,val\nfiles/c.png,2,val\n")
    source = open_source(path, "val")
    assert source.with_classes(("walk", "sit", "run")).labels.tolist() == [2, 0, 2]
    assert source.with_classes(("0", "1", "2", "3")).labels.tolist() == [2, 0, 2]
    assert source.with_classes(("2", "1", "0")).labels.tolist() == [0, 2, 0]  # here integers are the names
    with pytest.raises(UserError, match="line 2: label out of range"):
        source.with_classes(("walk", "sit"))


def test_label_hash_follows_the_order(write_csv):
    source = open_source(write_csv("path,label,split\nfiles/a.png,b,val\nfiles/b.png,a,val\n"), "val")
    assert source.label_hash == source.with_classes(("a", "b")).label_hash
    others = {source.with_classes(names).label_hash for names in (("b", "a"), ("a", "b", "c"), ("c", "a", "b"))}
    assert len(others | {source.label_hash}) == 4


@pytest.mark.parametrize(
    "name, head, classes, clips",
    [
        ("moving_digits", None, 8, (24, 8)),
        ("moving_digits", "motion", 8, (24, 8)),
        ("moving_digits", "digit_motion", 80, (24, 8)),
        ("still_digits", "digit", 10, (80, 4)),
    ],
)
def test_embedded_data(digits_cache, name, head, classes, clips):
    train, test = (open_source(name, split, head) for split in ("train", "test"))
    assert (len(train.keys), len(test.keys)) == clips
    assert not train.multi_label and train.modality == ("image" if name == "still_digits" else "video")
    # This small copy need not show each of the 80 classes.
    assert len(train.classes) == classes or (classes == 80 and 20 < len(train.classes) <= 40)
    assert train.classes == test.classes


def test_unknown_head_of_the_embedded_data(digits_cache):
    with pytest.raises(UserError, match="unknown head of moving_digits 'digit_motions'; did you mean 'digit_motion'"):
        open_source("moving_digits", "train", "digit_motions")
    with pytest.raises(UserError, match="unknown head of still_digits 'motion'"):
        open_source("still_digits", "train", "motion")


def test_the_modality_is_that_of_the_first_file_that_opens(tmp_path):
    """A broken first file makes neither an error nor videos of images."""
    good = np.zeros((8, 8, 3), np.uint8)
    for name, content in {"a.png": b"", "b.png": b"garbage", "c.png": None}.items():
        (tmp_path / name).write_bytes(cv2.imencode(".png", good)[1].tobytes() if content is None else content)
    (tmp_path / "x.csv").write_text("path,label,split\na.png,0,train\nb.png,0,train\nc.png,1,train\n")
    assert open_source(str(tmp_path / "x.csv"), "train").modality == "image"
    (tmp_path / "y.csv").write_text("path,label,split\na.png,0,train\n")
    with pytest.raises(DecodeError, match="none of the first 1 files can be read"):
        _ = open_source(str(tmp_path / "y.csv"), "train").modality


def test_integer_labels_have_a_bound(tmp_path):
    (tmp_path / "c.png").write_bytes(b"x")
    (tmp_path / "x.csv").write_text("path,label,split\nc.png,1000000001,train\n")
    with pytest.raises(UserError, match="integer labels are indices, up to 1000000; found 1000000001"):
        open_source(str(tmp_path / "x.csv"), "train")
