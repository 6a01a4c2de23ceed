import fsspec
import pytest

from tubevit import storage
from tubevit.data.sources import held_out_split, open_source
from tubevit.errors import UserError
from tubevit.evaluation import find_files


@pytest.fixture
def folder(tmp_path):
    """`folder(*files)`: a folder that holds these, empty; returns its path as text."""

    def make(*files):
        for file in files:
            path = tmp_path / "set" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path / "set")

    return make


def listing(source):
    root = source.name.rstrip("/")
    return [(key.removeprefix(f"{root}/"), source.classes[i]) for key, i in zip(source.keys, source.labels)]


@pytest.mark.parametrize("val", ["val", "validation"])
def test_folders_of_splits(folder, val):
    name = folder(
        "train/walk/b.mp4", "train/run/x/a.WEBM", f"{val}/walk/c.mp4", f"{val}/sit down/d.jpg", "test/run/e.gif"
    )
    train = open_source(name, "train")
    assert train.classes == ("run", "sit down", "walk")  # of all splits
    assert listing(train) == [("train/run/x/a.WEBM", "run"), ("train/walk/b.mp4", "walk")]
    assert train.notes == () and train.listed == 2 and train.labels.dtype == "int32"
    for split in ("val", "validation", "validate"):
        assert listing(open_source(name + "/", split)) == [
            (f"{val}/sit down/d.jpg", "sit down"),
            (f"{val}/walk/c.mp4", "walk"),
        ]
    assert len(open_source(name, "all")) == 5
    with pytest.raises(UserError, match="unknown split of .*set 'tests'; did you mean 'test'"):
        open_source(name, "tests")


def test_folders_of_classes(folder):
    name = folder(*(f"{label}/{i}.mp4" for label in "ab" for i in range(200)))
    train, test, everything = (open_source(name, split) for split in ("train", "test", "all"))
    assert {*train.keys, *test.keys} == set(everything.keys) and len(everything) == len(train) + len(test) == 400
    assert 0.74 < len(train) / 400 < 0.86
    assert len(train.notes) == 1 and "80 %" in train.notes[0] and "20 %" in train.notes[0]
    with pytest.raises(UserError, match="unknown split of .*set 'val'; "):
        open_source(name, "val")


def test_the_division_does_not_depend_on_where_the_folder_lies(folder, tmp_path):
    name = folder(*(f"a/{i}.mp4" for i in range(50)))
    before = [path for path, _ in listing(open_source(name, "test"))]
    (tmp_path / "set").rename(tmp_path / "moved")
    assert before and [path for path, _ in listing(open_source(str(tmp_path / "moved"), "test"))] == before


def test_a_class_may_be_called_train(folder):
    source = open_source(folder("train/a.mp4", "bus/b.mp4"), "all")
    assert listing(source) == [("bus/b.mp4", "bus"), ("train/a.mp4", "train")]
    assert any("train is a class, because it holds no folders" in note for note in source.notes)


def test_integer_classes_are_in_order_of_value(folder):
    assert open_source(folder("10/a.mp4", "9/b.mp4", "2/c.mp4"), "all").classes == ("2", "9", "10")
    assert open_source(folder("x/d.mp4"), "all").classes == ("10", "2", "9", "x")


def test_other_files_are_left_out(folder):
    name = folder("train/a/x.mp4", "train/a/x.json", "a/y.mp4", "top.mp4", "train/z.mp4")
    folder("train/a/._x.mp4", "train/.cache/x.mp4", "__MACOSX/train/a/x.mp4")  # what systems leave is not worth a word
    source = open_source(name, "all")
    assert listing(source) == [("train/a/x.mp4", "a")]
    assert any("left out 4 files" in note and "a/y.mp4" in note for note in source.notes)


@pytest.mark.parametrize(
    "files, found",
    [(["readme.txt"], "found no videos or images"), (["a.mp4", "b.jpg"], "found 2 videos and images, none of them in")],
)
def test_no_class_folders(folder, files, found):
    with pytest.raises(UserError, match=f"expected DIR/class/clip or DIR/train/class/clip .*; {found}"):
        open_source(folder(*files), "train")


def test_in_a_bucket():
    bucket = fsspec.filesystem("memory")
    for name in ("train/walk/a.mp4", "train/run/b.mp4", "val/run/c.mp4"):
        bucket.pipe(f"/folders/{name}", b"\xff\xd8\xff" + name.encode())
    source = open_source("memory://folders", "train")
    assert source.keys == ("memory://folders/train/run/b.mp4", "memory://folders/train/walk/a.mp4")
    assert source.labels.tolist() == [0, 1] and source.media(0).endswith(b"train/run/b.mp4")
    assert source.modality == "image"  # by content


def test_csv_in_a_bucket_needs_one_listing(monkeypatch):
    bucket = fsspec.filesystem("memory")
    for name in ("clips/a.mp4", "clips/deep/b.mp4", "lists/x/c.mp4"):
        bucket.pipe(f"/csv/{name}", b"x")
    rows = ["../../clips/a.mp4,run", "../../clips/deep/b.mp4,walk", "../../clips/c.mp4,run", "c.mp4,sit"]
    bucket.pipe("/csv/lists/x/all.csv", ("path,label\n" + "\n".join(rows)).encode())
    listings, real = [], storage.list_files
    monkeypatch.setattr(storage, "list_files", lambda path: listings.append(path) or real(path))
    monkeypatch.setattr(storage, "exists", None)
    source = open_source("memory://csv/lists/x/all.csv", "all")
    assert listings == ["memory://csv"]
    assert source.keys == ("memory://csv/clips/a.mp4", "memory://csv/clips/deep/b.mp4", "memory://csv/lists/x/c.mp4")
    assert source.labels.tolist() == [0, 2, 1] and source.listed == 4
    assert any("3 of 4 listed files" in note for note in source.notes)


def test_a_local_csv_may_list_files_of_buckets(tmp_path):
    fsspec.filesystem("memory").pipe("/other/a.png", b"\x89PNG\r\n\x1a\n")
    (tmp_path / "b.png").touch()
    (tmp_path / "x.csv").write_text(
        "path,label,split\nmemory://other/a.png,a,val\nb.png,b,val\nmemory://other/no.png,b,val\n"
    )
    assert open_source(str(tmp_path / "x.csv"), "val").keys == ("memory://other/a.png", str(tmp_path / "b.png"))


@pytest.mark.parametrize("asked", ["val", "valid", "validation"])
def test_csv_splits_have_one_name(tmp_path, asked):
    (tmp_path / "a.png").touch()
    (tmp_path / "x.csv").write_text("path,label,split\na.png,a,validate\n")
    assert len(open_source(str(tmp_path / "x.csv"), asked)) == 1


@pytest.mark.parametrize(
    "name, expected",
    [
        ("k40:a@b", "unknown kind of source 'k40'; did you mean 'k400'"),
        ("tdfs:mnist", "did you mean 'tfds'"),
        ("folder/none", "source folder/none does not exist: expected FILE.csv, a folder"),
        ("memory://none/a", "source memory://none/a does not exist"),
        ("memory://none/a.csv", "csv file memory://none/a.csv does not exist"),
        ("k400:list.csv", r"expected k400:LIST@CLIPS_DIR"),
        ("ssv2:a@b@c", r"expected ssv2:LIST@CLIPS_DIR"),
        ("hmdb51:@b", r"expected hmdb51:LIST@CLIPS_DIR"),
        ("k400:none.csv@clips", "none.csv does not exist; expected a csv label,youtube_id"),
        ("ssv2:none@clips", "folder none does not exist; expected the folder of train.json"),
        ("charades:none@clips", "folder none does not exist; expected the folder of Charades_v1_train.csv"),
        ("ucf101:none@clips", "folder none does not exist; expected the folder of classInd.txt"),
        ("hmdb51:none@clips", "folder none does not exist; expected the folder of CLASS_test_split1.txt"),
        ("imagenet:none", "expected none/train and none/val"),
    ],
)
def test_no_such_source(name, expected):
    with pytest.raises(UserError, match=expected) as error:
        open_source(name, "train")
    assert "\n" not in str(error.value)


def test_folders_that_are_links(tmp_path):
    (tmp_path / "elsewhere/a").mkdir(parents=True)
    (tmp_path / "elsewhere/a/x.mp4").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to("../elsewhere")
    assert open_source(str(tmp_path / "set"), "train").keys == (str(tmp_path / "set/train/a/x.mp4"),)


def test_links_that_lead_back_are_left(folder, tmp_path, caplog):
    name = folder("a/x.mp4", "a/deep/y.mp4", "b/z.mp4")
    for link, target in (("a/up", ".."), ("a/deep/self", "."), ("b/whole", tmp_path / "set"), ("c", "b")):
        (tmp_path / "set" / link).symlink_to(target)
    source = open_source(name, "all")
    assert listing(source) == [("a/deep/y.mp4", "a"), ("a/x.mp4", "a"), ("b/z.mp4", "b"), ("c/z.mp4", "c")]
    assert "a/up is a link to a folder that it lies in" in caplog.text
    files = find_files([name])  # as `predict` walks it
    assert list(map(str, files)) == list(source.keys) == list(map(str, find_files([f"{name}/**/*.mp4"])))
    assert find_files([f"{name}/**"]) == files and find_files([f"{name}/*/deep"]) == files[:1]


@pytest.mark.parametrize(
    "train, test",
    [("Train", "Test"), ("TRAIN", " testing"), ("training ", "Eval"), ("Training", "dev"), ("train", "Validation")],
)
def test_folders_of_splits_have_many_spellings(folder, train, test):
    name = folder(*(f"{part}/{label}/{i}.mp4" for part in (train, test) for label in ("cat", "dog ") for i in range(3)))
    source = open_source(name, "Train")
    assert source.classes == ("cat", "dog") and len(source) == 6 and source.notes == ()
    assert all(key.startswith(f"{name}/{train}/") for key in source.keys)
    held_out = open_source(name, held_out_split(name))
    assert len(held_out) == 6 and all(key.startswith(f"{name}/{test}/") for key in held_out.keys)


def test_folders_of_one_split_are_taken_together(folder):
    name = folder("Val/a/x.mp4", "dev/b/y.mp4", "train/a/z.mp4", "Train/a/w.mp4")
    assert open_source(name, "val").notes == (f"{name}: dev and val are taken together as the split val",)
    assert len(open_source(name, "val")) == len(open_source(name, "train")) == 2


def test_folders_that_are_no_splits_are_told(folder):
    name = folder("train/a/x.mp4", "tset/a/y.mp4")
    notes = open_source(name, "train").notes
    assert any("beside the splits, e.g. tset; did you mean 'test'?" in note for note in notes)


@pytest.mark.parametrize("files", [("trian/a/x.mp4", "tset/a/y.mp4"), ("fold1/b/x.mp4", "fold2/b/y.mp4")])
def test_classes_that_look_like_splits_are_told(folder, files):
    assert any("its folders are the classes" in note for note in open_source(folder(*files), "all").notes)


def test_a_folder_above_the_splits_is_told(folder):
    notes = open_source(folder("data/train/a/x.mp4", "data/test/a/y.mp4"), "all").notes
    assert any("its folders are the classes, although data holds t" in note for note in notes)
