"""Lists that contradict themselves: told with their lines, or read as they are meant."""

import csv
import io
import itertools
import os

import hypothesis
import pytest
from hypothesis import strategies as st

from tubevit.data.sources import held_out_split, open_source
from tubevit.errors import UserError


@pytest.fixture
def table(tmp_path):
    """`table(*lines)`: a csv `path,label,split` beside the files a.mp4 ... h.mp4; returns its path as text."""
    for name in "abcdefgh":
        (tmp_path / f"{name}.mp4").touch()

    def write(*lines, header="path,label,split", encoding="utf-8", name="list.csv"):
        (tmp_path / name).write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
        return str(tmp_path / name)

    return write


def found(name, split="all", **settings):
    """The names of the files of a split with their labels."""
    source = open_source(name, split, **settings)
    return [(os.path.basename(key)[0], source.classes[i]) for key, i in zip(source.keys, source.labels)]


def refused(name, *texts):
    with pytest.raises(UserError) as error:
        open_source(name, "train")
    message = str(error.value)
    assert "\n" not in message and name in message
    assert all(text in message for text in texts), message


@pytest.mark.parametrize(
    "spelling, split",
    [
        *((name, "train") for name in ("Train", "TRAIN", " train", "training ", "Training")),
        *((name, "val") for name in ("Validation", "eval", "DEV", "valid", "Development", "evaluation", "\tval")),
        *((name, "test") for name in ("Testing", "TEST", "test\u00a0")),
    ],
)
def test_splits_have_many_spellings(table, spelling, split):
    others = [name for name in ("train", "val", "test") if name != split]
    path = table(f"a.mp4,x,{spelling}", f"b.mp4,x,{others[0]}", f"c.mp4,x,{others[1]}")
    assert found(path, split) == found(path, spelling) == [("a", "x")]
    assert open_source(path, "ALL").notes == () and len(found(path)) == 3


@pytest.mark.parametrize(
    "split, said", [("tset", "did you mean 'test'"), ("fold1", "valid: "), ("all", "did you mean")]
)
def test_an_unknown_split_is_told_with_its_line(table, split, said):
    refused(table("a.mp4,x,train", f"b.mp4,x,{split}"), f"line 3: unknown split '{split}'", said)
    with pytest.raises(UserError, match="line 2"):  # not taken for a list without a held-out split
        held_out_split(table(f"a.mp4,x,{split}"))


def test_two_names_of_a_split_are_told(table):
    path = table("a.mp4,x,dev", "b.mp4,x,Val", "c.mp4,x,val")
    assert len(found(path, "val")) == 3
    assert open_source(path, "val").notes == (f"{path}: dev and val are taken together as the split val",)


def test_blanks_do_not_count(table, tmp_path):
    path = table(' a.mp4 , "x", train', "b.mp4,x\u00a0,train", "c.mp4,y|z,train", "d.mp4, z | y ,train")
    source = open_source(path, "train")
    assert source.classes == ("x", "y", "z")
    assert source.labels.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]]
    (tmp_path / "g.mp4 ").touch()  # a name that ends with a blank is found
    assert open_source(table("g.mp4 ,x,train"), "all").keys == (str(tmp_path / "g.mp4 "),)
    refused(table("a.mp4, ,train"), "line 2: the label is empty")
    refused(table("a.mp4,x| ,train"), "line 2: the label is empty")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["Path, Label, Split", "PATH,label , SPLIT", '"path","Label"," split"'])
def test_case_and_blanks_of_the_header_do_not_count(table, header, encoding):
    path = table("a.mp4,x,train", "b.mp4,y,test", header=header, encoding=encoding)
    assert found(path, "train") == [("a", "x")] and open_source(path, "train").notes == ()


@pytest.mark.parametrize(
    "header, said",
    [
        ("path;label;split", "separate the columns by commas, not by ';'"),
        ("path\tlabel\tsplit", r"not by '\t'"),
        ("paths,labels,split", "rename paths to path and rename labels to label"),
        ("path,label,Label", "column label occurs twice"),
        ("file,class,split", "expected the header path,label[,split]; found file,class,split"),
    ],
)
def test_other_headers_are_told(table, header, said):
    refused(table("a.mp4,x,train", header=header), "line 1: expected the header path,label[,split]", said)


def test_a_misspelt_column_split_is_told(table):
    (note,) = open_source(table("a.mp4,x,train", "b.mp4,x,test", header="path,label,splits")).notes
    assert "has no column split (but splits)" in note and "80 %" in note


def test_a_file_in_two_splits_needs_a_word(table, tmp_path):
    path = table("a.mp4,x,train", "b.mp4,y,train", ".//a.mp4,x,test")
    refused(path, "lines 2 and 4", "a.mp4 is in the splits train and test", "--allow-overlap")
    assert found(path, "train", allow_overlap=True) == [("a", "x"), ("b", "y")]
    assert found(path, "test", allow_overlap=True) == [("a", "x")]
    assert len(found(path, allow_overlap=True)) == 2  # once among all
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "folder").symlink_to(".")
    for other in ("link.mp4", "folder/a.mp4", str(tmp_path / "a.mp4"), "folder/./a.mp4"):
        refused(table("a.mp4,x,train", f"{other},x,val"), "lines 2 and 3", "splits train and val")


def test_a_repeated_row_is_used_once(table):
    path = table("a.mp4,x,train", "b.mp4,y,train", "a.mp4,x,Train", "./a.mp4,x ,train")
    source = open_source(path, "train")
    assert found(path, "train") == [("a", "x"), ("b", "y")] and source.listed == 2
    assert source.notes == (
        f"{path}: 2 rows of files that are listed already, e.g. line 4 repeats line 2: each file is used once",
    )
    without = table("a.mp4,x", "./a.mp4,x", "b.mp4,y", header="path,label")  # hashes of the two paths may differ
    assert found(without) == [("a", "x"), ("b", "y")]


def test_a_file_with_two_labels_is_told(table):
    for labels in (("x", "y"), ("x|y", "x"), ("1", "2")):
        path = table(f"a.mp4,{labels[0]},train", f"./a.mp4,{labels[1]},train")
        refused(path, "lines 2 and 3", "joined by | in one row")
        with pytest.raises(UserError, match="lines 2 and 3"):
            open_source(path, "train", allow_overlap=True)
    assert len(found(table("a.mp4,1,train", "a.mp4,01,train"))) == 1
    several = open_source(table("a.mp4,x|y,train", "a.mp4,y | x,train"), "train")
    assert several.labels.tolist() == [[1, 1]]


def test_labels_that_are_partly_integers_are_told(table):
    source = open_source(table("a.mp4,1,train", "b.mp4,-1,train"), "train")
    assert source.classes == ("-1", "1") and "line 3 has -1" in source.notes[0]
    assert (
        open_source(table("a.mp4,Cat,train", "b.mp4,cat,train"), "train")
        .notes[0]
        .endswith("Cat and cat are different classes")
    )
    accents = ("caf\u00e9", "cafe\u0301")  # composed, and as macOS writes names of files
    (note,) = open_source(table(*(f"{i}.mp4,{name},train" for i, name in zip("ab", accents))), "train").notes
    assert note.endswith(f"{accents[1]} and {accents[0]} are different classes")


def test_names_need_not_be_utf_8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    (tmp_path / "x.csv").write_bytes(b"path,label,split\ncaf\xe9.mp4,x,train\n")
    source = open_source(str(tmp_path / "x.csv"), "train")
    assert [os.fsencode(key) for key in source.keys] == [os.fsencode(tmp_path) + b"/caf\xe9.mp4"]
    (tmp_path / "x.csv").write_bytes(b"path,label\ncaf\xe9.mp4,x\n")
    assert len(open_source(str(tmp_path / "x.csv"))) == 1
    (tmp_path / "x.csv").write_bytes(b"path,label,split\ncaf\xe9.mp4,x\xe9,train\n")
    refused(str(tmp_path / "x.csv"), "line 2: the label", "save the csv as UTF-8")
    (tmp_path / "x.csv").write_bytes("path,label\n".encode("utf-16"))
    refused(str(tmp_path / "x.csv"), "is not text in UTF-8")


def test_the_suffix_may_be_in_capitals(table):
    assert found(table("a.mp4,x,train", name="C.CSV"), "train") == [("a", "x")]


BLANKS = st.sampled_from(["", " ", "  "])
SPELLINGS = {
    "train": ("train", "Train", "TRAINING"), "val": ("val", "Dev", "validation", "EVAL"), "test": ("test", "Testing"),
    None: ("fold1", "tset", "holdout"),
}  # fmt: skip
ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from(["{}.mp4", "./{}.mp4", "x/../{}.mp4", "x//..//{}.mp4"]),
        st.sets(st.sampled_from(["cat", "dog", "a, b"]), min_size=1, max_size=2),
        st.sampled_from(["train", "train", "train", "val", "val", "test", "test", None]),
        st.integers(0, 3),
        BLANKS,
    ),
    min_size=1,
    max_size=6,
)


def expected_files(rows):
    """{split: {file: labels}}, or None if the rows contradict each other."""
    splits = {}
    for file, _, labels, split, _, _ in rows:
        if split is None:
            return None
        splits.setdefault(split, {}).setdefault(file, labels)
    known = {}
    for file, _, labels, split, _, _ in rows:
        if known.setdefault(file, (labels, split)) != (labels, split):
            return None
    return splits


@hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    rows=ROWS, header=st.sampled_from(["path,label,split", "Split , Path,LABEL", "note,label,split,path"])
)
def test_any_table_is_read_as_meant_or_refused_in_a_line(tmp_path_factory, rows, header):
    folder = tmp_path_factory.getbasetemp() / "tables"
    (folder / "x").mkdir(parents=True, exist_ok=True)
    for name in "abcd":
        (folder / f"{name}.mp4").touch()
    text = io.StringIO()
    writer = csv.writer(text)
    for file, spelling, labels, split, number, blank in rows:
        cells = {
            "path": spelling.format(file),
            "label": f"{blank}|{blank}".join(sorted(labels, reverse=number > 1)) + blank,
            "split": blank + SPELLINGS[split][number % len(SPELLINGS[split])] + blank,
        }
        writer.writerow([cells.get(column.strip().lower(), "") for column in header.split(",")])
    path = folder / "table.csv"
    path.write_text(header + "\n" + text.getvalue(), newline="")
    expected = expected_files(rows)
    if expected is None:
        with pytest.raises(UserError, match=r"lines? \d+") as error:
            open_source(str(path))
        assert "\n" not in str(error.value)
        return
    classes = sorted(set(itertools.chain(*(labels for _, _, labels, *_ in rows))))
    for split, files in expected.items():
        source = open_source(str(path), split.upper())
        assert source.classes == tuple(classes)
        labels = [
            [classes[i] for i in row.nonzero()[0]] if source.multi_label else [classes[row]] for row in source.labels
        ]
        assert dict(zip((os.path.basename(key)[0] for key in source.keys), map(set, labels))) == files
        assert len(source) == len(files)
