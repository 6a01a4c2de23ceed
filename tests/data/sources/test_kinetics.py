import pathlib
import random

import pytest

from tubevit import storage
from tubevit.data.sources import open_source
from tubevit.errors import UserError

HEADER = "label,youtube_id,time_start,time_end,split\n"
TRAIN = "air drumming,-a_b-c_d-e1,5,15,train\nabseiling,a_000001_x1,0,10,train\nair drumming,twotwotwo_2,7,17,train\n"
VAL = "yoga,vvvvvvvvvvv,100,110,validate\n"


@pytest.fixture
def kinetics(tmp_path):
    """`kinetics(lists, *clips, key="k400")`: the name of a source with lists {file: text} and empty clips."""

    def make(lists, *clips, key="k400"):
        for folder, files in (("lists", lists), ("clips", dict.fromkeys(clips, ""))):
            for file, text in files.items():
                path = tmp_path / folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return f"{key}:{tmp_path}/lists@{tmp_path}/clips"

    return make


def found(source):
    """{name below the folder of clips: class}"""
    root = source.name.partition("@")[2]
    return {str(pathlib.Path(k).relative_to(root)): source.classes[i] for k, i in zip(source.keys, source.labels)}


@pytest.mark.parametrize(
    "names",
    [
        ("{id}.mp4",),
        ("{id}_{start:06d}_{end:06d}.mp4",),
        ("{id}_{start}_{end}.webm",),
        ("train/{id}_{start:06d}_{end:06d}.mp4.mkv", "{id}.mp4.part", "{id}.json"),
        ("{folder}/{id}.avi",),
        ("train/{folder}/{id}_{start:06d}_{end:06d}.MP4", "._{id}_{start:06d}_{end:06d}.mp4"),
        ("class {number}/{id}.mkv",),
    ],
)
@pytest.mark.parametrize("blank", [" ", "_"])
def test_layouts_of_downloaders(kinetics, names, blank):
    clips, expected = [], {}
    for number, row in enumerate(TRAIN.splitlines()):
        label, youtube_id, start, end, _ = row.split(",")
        values = dict(id=youtube_id, start=int(start), end=int(end), folder=label.replace(" ", blank), number=number)
        clips += [name.format(**values) for name in names]
        expected[clips[-len(names)]] = label
    source = open_source(kinetics({"train.csv": HEADER + TRAIN, "validate.csv": HEADER + VAL}, *clips), "train")
    assert found(source) == expected
    assert source.classes == ("abseiling", "air drumming", "yoga")  # of the whole list, sorted
    assert source.listed == 3 and len(source) == 3
    assert [note.partition(": ")[2] for note in source.notes] == [
        "a list of 3 classes; k400 has 400: indices follow this list"
    ]


def test_missing_clips_are_counted(kinetics):
    name = kinetics({"all.csv": HEADER + TRAIN + VAL}, "twotwotwo_2.mp4", "unlisted.mp4")
    source = open_source(name, "train")
    assert (source.listed, len(source)) == (3, 1)
    assert source.notes[0] == f"{name}: 1 of 3 listed clips were found"
    with pytest.raises(
        UserError, match="none of the 1 listed clips exists; expected e.g. vvvvvvvvvvv_000100_000110.mp4 or"
    ):
        open_source(name, "val")
    with pytest.raises(UserError, match="unknown split of .* 'tran'; did you mean 'train'"):
        open_source(name, "tran")


@pytest.mark.parametrize("asked", ["val", "validate", "validation"])
@pytest.mark.parametrize("written", ["val", "validate"])
def test_val_has_one_name(kinetics, asked, written):
    name = kinetics({"k.csv": HEADER + TRAIN + VAL.replace("validate", written)}, "vvvvvvvvvvv.mp4")
    assert found(open_source(name, asked)) == {"vvvvvvvvvvv.mp4": "yoga"}
    assert found(open_source(name.replace("lists@", "lists/k.csv@"), asked)) == {"vvvvvvvvvvv.mp4": "yoga"}


def test_the_same_video_at_several_times(kinetics):
    rows = "run,same,0,10,train\nwalk,same,10,20,train\nwalk,same,30,40,train\n"
    with_times = kinetics({"k.csv": HEADER + rows}, "x/same_000010_000020.mp4", "same_000000_000010.mp4")
    assert found(open_source(with_times, "train")) == {
        "x/same_000010_000020.mp4": "walk",
        "same_000000_000010.mp4": "run",
    }


@pytest.mark.parametrize(
    "clips, expected, left_out",
    [
        (["same.mp4", "other.mp4"], {"other.mp4": "run"}, 3),  # which of the three is it?
        (["Run/same.mp4", "other.mp4"], {"Run/same.mp4": "run", "other.mp4": "run"}, 2),
        (["walk/same.mp4", "other.mp4"], {"other.mp4": "run"}, 3),  # one of two of this class
        (
            ["run/same.mp4", "walk/same_000030_000040.mp4"],
            {"run/same.mp4": "run", "walk/same_000030_000040.mp4": "walk"},
            1,
        ),
    ],
)
def test_without_times_the_class_folder_decides(kinetics, clips, expected, left_out):
    rows = "run,same,0,10,train\nwalk,same,10,20,train\nwalk,same,30,40,train\nrun,other,0,10,train\n"
    source = open_source(kinetics({"k.csv": HEADER + rows}, *clips), "train")
    assert found(source) == expected and source.listed == 4
    assert any(
        f": {left_out} clips " in note and "ID that is listed with several times" in note for note in source.notes
    )


def test_copies_and_repeated_rows_count_once(kinetics):
    lists = {"train.csv": HEADER + TRAIN, "train_again.csv": HEADER + TRAIN}
    name = kinetics(lists, "abseiling/twotwotwo_2.mp4", "air_drumming/twotwotwo_2.mp4")
    source = open_source(name, "train")
    assert found(source) == {"air_drumming/twotwotwo_2.mp4": "air drumming"} and source.listed == 3
    same = [f"{folder}/-a_b-c_d-e1.{kind}" for folder in ("part2", "part1") for kind in ("mp4", "mkv")]
    assert "part1/-a_b-c_d-e1.mkv" in found(open_source(kinetics({}, *same), "train"))  # the first


def test_held_out_lists(kinetics):
    test = "youtube_id,time_start,time_end,split\nttttttttttt,0,10,test\n"
    clips = ("ttttttttttt.mp4", "vvvvvvvvvvv.mp4", "twotwotwo_2.mp4")
    name = kinetics({"train.csv": HEADER + TRAIN, "val.csv": HEADER + VAL, "test.csv": test}, *clips)
    with pytest.raises(UserError, match="the list of test has no labels"):
        open_source(name, "test")
    everything = open_source(name, "all")
    assert set(found(everything)) == set(clips[1:]) and everything.listed == 4
    assert any("1 listed clips have no label" in note for note in everything.notes)


def test_without_the_column_split_the_name_of_the_file_tells_it(kinetics):
    header, row = "label,youtube_id,time_start,time_end\n", "run,ttttttttttt,0,10\n"
    name = kinetics({"kinetics_600_validation.csv": header + row}, "ttttttttttt.mp4")
    assert len(open_source(name, "val")) == 1
    with pytest.raises(UserError, match="list.csv line 2: expected a column split of train, .*; found list"):
        open_source(kinetics({"list.csv": header + row}), "val")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a,b\n", "expected the header label,youtube_id,time_start,time_end,split; found a,b"),
        (HEADER, "lists no files"),
        (HEADER + "run,x,0,ten,train\n", "line 2: expected times in seconds; found .*'ten'"),
        (HEADER + "run,x,0,10\n", "line 2: expected 5 columns"),
    ],
)
def test_malformed_lists(kinetics, text, expected):
    name = kinetics({"k.csv": text}, "x.mp4").replace("lists@", "lists/k.csv@")
    with pytest.raises(UserError, match=expected):
        open_source(name, "train")


def test_folders_without_lists_or_clips(kinetics):
    name = kinetics({"train.csv": HEADER + TRAIN, "sub/other.csv": "path,label\na,b\n"}, "notes.txt", "train/.x.mp4")
    with pytest.raises(UserError, match="sub holds no list of Kinetics; expected a csv label,"):
        open_source(name.replace("lists@", "lists/sub@"), "train")
    with pytest.raises(UserError, match="clips2 does not exist; expected the folder of the clips"):
        open_source(f"{name}2", "train")
    with pytest.raises(UserError, match="clips: expected clips .*; found none"):
        open_source(name, "train")


def test_a_list_of_all_classes_has_no_note(kinetics):
    rows = [f"class {i},id{i},0,10,train\n" for i in range(600)]
    random.Random(0).shuffle(rows)
    clips = [f"id{i}.mp4" for i in range(600)]
    source = open_source(kinetics({"k.csv": HEADER + "".join(rows)}, *clips, key="k600"), "train")
    assert source.notes == () and len(source.classes) == 600
    assert source.classes == tuple(sorted(f"class {i}" for i in range(600)))


def test_in_a_bucket_one_listing_and_no_look_at_single_clips(monkeypatch):
    import fsspec

    bucket = fsspec.filesystem("memory")
    bucket.pipe("/k/lists/train.csv", (HEADER + TRAIN).encode())
    for name in ("abseiling/a_000001_x1_000000_000010.mp4", "twotwotwo_2.mp4"):
        bucket.pipe(f"/k/clips/{name}", b"x")
    calls = []
    for function in ("exists", "is_folder", "list_files", "read_bytes"):
        real = getattr(storage, function)
        monkeypatch.setattr(storage, function, lambda path, real=real: calls.append(str(path)) or real(path))
    source = open_source("k400:memory://k/lists@memory://k/clips", "train")
    assert source.labels.tolist() == [0, 1] and source.keys[1] == "memory://k/clips/twotwotwo_2.mp4"
    assert len(calls) < 8 and not any(call.endswith(".mp4") for call in calls)


def test_other_files_beside_the_lists(kinetics):
    """Hidden files of a Mac and csv files in another encoding do not matter; blanks around an ID do not either."""
    name = kinetics({"train.csv": HEADER + TRAIN.replace("a_000001_x1,", " a_000001_x1 ,")}, "a_000001_x1.mp4")
    folder = pathlib.Path(name.partition(":")[2].partition("@")[0])
    (folder / "._train.csv").write_bytes(b"\0\5\x16\7\xff")
    (folder / "notes.csv").write_bytes("Straße,Größe\n".encode("latin-1"))
    assert found(open_source(name, "train")) == {"a_000001_x1.mp4": "abseiling"}
    (folder / "val.csv").write_bytes(HEADER.encode() + "Größe,b,0,10,val\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot read .*val.csv: 'utf-8' codec"):
        open_source(name, "train")
