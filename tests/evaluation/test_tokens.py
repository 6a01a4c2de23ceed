"""Tokens as files: what the encoder gives, in order, at known places and times; complete or absent."""

import itertools
import json
import pathlib
import re
import weakref

import av
import numpy as np
import pytest
from flax import nnx

import tubevit
from tests.data.clips import set_rotation, write_clip
from tubevit.data.decode import decode_clip
from tubevit.errors import DecodeError, UserError
from tubevit.evaluation import Prediction, predict
from tubevit.evaluation.token_grid import TokenGrid
from tubevit.evaluation.tokens import token_paths, write_tokens

PAGE = pathlib.Path(tubevit.__file__).parents[1] / "docs/long_videos.md"
TUBES = "4x8x8/8x16x16+2x4x4_2x6x4/5x8x12+0x4x0%1x2x1_1x8x8/16x16x8"
MADE_WITH = {"model": "tiny", "fingerprint": "0123"}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(depth=1, tubes=TUBES, fps=8.0)


def written(model, folder, files, every=2.0):
    """The predictions of files whose tokens are written into a folder."""
    predictions = predict(model, files, every=every, top=0, keep_tokens=True)
    return list(write_tokens(predictions, token_paths(folder, files), MADE_WITH))


def run_page(number, names):
    """Run a block of Python of the page, with these names."""
    exec(re.findall(r"```python\n(.+?)```", PAGE.read_text(), re.DOTALL)[number], names)
    return names


def write_patch(path, patch):
    """6 s at 25 FPS, 96x160, dark and turned by 90 degrees for display; with a bright patch from 3.04 to 3.6 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "8"})
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        for i in range(150):
            frame = np.full((96, 160, 3), 40, np.uint8)
            if patch and 76 <= i < 90:
                frame[20:32, 100:112] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    set_rotation(path, 1)
    return path


def test_the_lines_of_the_page_lead_to_time_and_place(model, tmp_path, monkeypatch):
    """The tokens that a bright patch changes most lie where and when the decoded frames show it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dark").mkdir()
    files = [write_patch(tmp_path / "match.mp4", True), write_patch(tmp_path / "dark/match.mp4", False)]
    frames = decode_clip(files[0])  # upright: 160 rows, 96 columns
    shown = np.argwhere(frames.mean(axis=-1) > 135)
    time, row, column = shown.mean(axis=0) * [1 / 25, 1, 1] + [1 / 50, 0, 0]  # a frame is shown for 1/25 s
    assert frames.shape[1:3] == (160, 96) and len(shown) == 14 * 12 * 12
    assert (row, column) != pytest.approx((25.5, 105.5), abs=5)  # it is turned

    written(model, "tokens", files, every=1.0)
    names = run_page(0, {})
    dark = np.load("tokens/dark/match.mp4.npy")
    changes = np.linalg.norm(names["tokens"].astype(np.float64) - dark, axis=-1)
    times, y, x = names["times"], names["y"], names["x"]
    assert changes.shape == times.shape == (6, 190) and y.shape == x.shape == (190,)
    assert not changes[:2].any()  # clips that end at 3 s
    for tube, kernel in zip(names["about"]["tubes"], ((4, 8, 8), (2, 10, 4)), strict=False):
        part = slice(tube["first"], tube["end"])
        clip, token = np.unravel_index(changes[:, part].argmax(), changes[:, part].shape)
        token += tube["first"]
        reach = np.array(kernel) / 2 * [1 / 8, 96 / 64, 96 / 64] + [0.28, 6, 6]  # half of what it reads, and the patch
        assert (np.abs([times[clip, token] - time, y[token] - row, x[token] - column]) <= reach).all(), tube


def test_tokens_are_those_of_the_encoder(model, tmp_path):
    """Of each clip that is cut by hand, in the order of the grids; an image has one clip."""
    video = write_clip(tmp_path / "a.mkv", range(0, 6000, 40), size=(64, 80))
    image = tmp_path / "b.png"
    frames = decode_clip(video)
    av.VideoFrame.from_ndarray(frames[37]).to_image().save(image)
    found = written(model, tmp_path / "out", [video, image])
    tokens = np.load(tmp_path / "out/a.mkv.npy", mmap_mode="r")
    about = json.loads((tmp_path / "out/a.mkv.json").read_text())
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.float16 and tokens.shape == (3, 190, 24)
    assert (
        (about["start"], about["end"])
        == ([0, 2, 4], [2, 4, 6])
        == tuple([getattr(each, name) for each in found[:3]] for name in ("start", "end"))
    )
    assert about["file"] == str(video) and about["picture"] == {"height": 64, "width": 80}
    assert {name: about[name] for name in MADE_WITH} == MADE_WITH
    compute = nnx.jit(lambda model, video: (model.encode(video), model.features(video)))
    for start, rows, each in zip(about["start"], tokens, found, strict=False):
        cut = frames[[min(int((start + i / 8 + 1e-3) * 25), 149) for i in range(16)]][None, :, :, 8:72]
        expected, pooled = compute(model, cut)
        np.testing.assert_allclose(rows, expected[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(each.features, pooled[0], rtol=1e-5, atol=1e-5)
        assert each.tokens is None and each.grid is None
    grid = run_page(1, {"about": about, "tokens": tokens})["grid"]
    assert grid.shape == (3, 3, 7, 6, 24)
    np.testing.assert_array_equal(grid[1, 2, 3, 4], tokens[1, 32 + (2 * 7 + 3) * 6 + 4])

    still = json.loads((tmp_path / "out/b.png.json").read_text())
    assert np.load(tmp_path / "out/b.png.npy").shape == (1, 32, 24)
    assert (still["start"], still["end"]) == ([None], [None]) and {row[0] for row in still["centres"]} == {0}


def some_clips(file, count, shape=(5, 3), picture=(8, 8), made=None):
    """Predictions with random tokens; `made` gets a weak reference to each array."""
    rng = np.random.default_rng(0)
    for number in range(count):
        tokens = rng.normal(size=shape).astype(np.float32)
        if made is not None:
            made.append(weakref.ref(tokens))
        grid = TokenGrid(number, number + 2.0, picture, np.zeros((shape[0], 3)), ())
        yield Prediction(file, "video", number, number + 2.0, np.zeros(3, np.float32), tokens=tokens, grid=grid)


def test_memory_does_not_grow_with_the_video(tmp_path):
    """Tokens are written as they come: those of at most two clips are alive, and the rest is on the disk."""
    made, paths = [], {"a.mp4": tmp_path / "a.mp4"}
    for number, _ in enumerate(write_tokens(some_clips("a.mp4", 200, made=made), paths, MADE_WITH), 1):
        assert sum(reference() is not None for reference in made) <= 2
        (file,) = tmp_path.glob(".tubevit-*/tokens")
        assert number * 30 < file.stat().st_size < number * 30 + 300 and not (tmp_path / "a.mp4.npy").exists()
    expected = np.stack([each.tokens for each in some_clips("a.mp4", 200)])
    np.testing.assert_array_equal(np.load(tmp_path / "a.mp4.npy"), expected.astype(np.float16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4.json", "a.mp4.npy"]


def test_values_beyond_half_precision(tmp_path):
    (clip,) = some_clips("a.mp4", 1)
    clip.tokens[:] = [1e6, -1e6, 2.5]
    list(write_tokens([clip], {"a.mp4": tmp_path / "a"}, MADE_WITH))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy")[0], np.tile([65504, -65504, 2.5], (5, 1)))


def test_what_is_not_whole_does_not_appear(tmp_path):
    """Not of a file that ends with an error, whose frames change their size, or where the reader stops."""
    files = ("a", "b", "c", "d")
    paths = {name: tmp_path / "new" / name for name in files}
    clips = itertools.chain(
        some_clips("a", 3), [Prediction("a", error=DecodeError("a is damaged"))],
        some_clips("b", 2), some_clips("b", 2, picture=(8, 10)), some_clips("c", 2),
    )  # fmt: skip
    found = list(write_tokens(clips, paths, MADE_WITH))
    errors = [str(each.error) for each in found if each.error]
    assert errors == ["a is damaged", "b has frames of 8x8 and 10x8: its tokens have no one grid"]
    assert [each.file for each in found] == [*"aaaa", *"bbb", *"cc"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["c.json", "c.npy"]
    stopped = write_tokens(some_clips("d", 5), paths, MADE_WITH)
    next(stopped)
    stopped.close()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["c.json", "c.npy"]


def test_names_that_are_the_same_from_several_folders(tmp_path, monkeypatch):
    """Each is the file of the folder in which predict was run."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if name == "b":
            with pytest.raises(UserError, match=f"holds the tokens of {tmp_path}/a/clip.mp4"):
                token_paths(tmp_path / "out", ["clip.mp4"])
            assert token_paths(tmp_path / "out", [tmp_path / "a/clip.mp4"])
        else:
            list(write_tokens(some_clips("clip.mp4", 1), token_paths(tmp_path / "out", ["clip.mp4"]), MADE_WITH))


def test_names_that_are_the_same_in_several_folders(tmp_path):
    files = [tmp_path / name for name in ("in/a/clip.mp4", "in/b/clip.mp4", "in/b/clip.avi")]
    out = tmp_path / "out"
    places = token_paths(out, files)
    expected = ["a/clip.mp4", "b/clip.mp4", "b/clip.avi"]
    assert [path.relative_to(out).as_posix() for path in places.values()] == expected
    assert token_paths(out, files[1:2]) == {files[1]: out / "clip.mp4"}
    list(write_tokens(some_clips(files[0], 1), token_paths(out, files[:1]), MADE_WITH))
    assert token_paths(out, files[:1])  # its own are replaced
    with pytest.raises(UserError, match=f"clip.mp4.json holds the tokens of {files[0]}; name another folder"):
        token_paths(out, files[1:2])
    for content in ("[1]", '{"labels": 3}', "no json"):
        (out / "clip.avi.json").write_text(content)
        with pytest.raises(UserError, match=r"clip.avi.json is not written by predict --tokens"):
            token_paths(out, files[2:])


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/a.npy: .*; name another folder"):
        list(write_tokens(some_clips("a", 1), {"a": tmp_path / "file/a"}, MADE_WITH))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
