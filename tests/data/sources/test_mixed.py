"""Videos and images in one source, and files whose content denies their name."""

import cv2
import numpy as np
import pytest

from tests.data.clips import write_clip
from tubevit.config import dataset_config
from tubevit.config.experiment import open_eval
from tubevit.data.augment import Augment
from tubevit.data.pipeline import SampleLoader
from tubevit.data.shard_writer import write_shards
from tubevit.data.sources import open_source
from tubevit.errors import DecodeError, UserError
from tubevit.models.config import Head
from tubevit.models.variants import model_config


@pytest.fixture
def files(tmp_path):
    """`files(*names)`: a csv of videos and images by their suffix; `=.jpg` after a name gives another content."""

    def make(*names):
        rows = []
        for name in names:
            name, _, content = name.partition("=")
            content = tmp_path / ("content" + (content or name[name.rindex(".") :]))
            if content.suffix in (".mp4", ".gif"):
                codec = {"codec": "gif", "pixels": "rgb8"} if content.suffix == ".gif" else {}
                write_clip(content, range(0, 800, 40), size=(32, 32), **codec)
            else:
                cv2.imwrite(str(content), np.full((32, 32, 3), 99, np.uint8))
            (tmp_path / name).write_bytes(content.read_bytes())
            rows.append(f"{name},x,train")
        (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
        return str(tmp_path / "list.csv")

    return make


@pytest.mark.parametrize(
    "names, said",
    [
        (("a.mp4", "b.png"), ("1 video (e.g. ", "a.mp4) and 1 image (e.g. ", "b.png)")),
        (("b.png", "a.mp4", "c.jpg"), ("2 images (e.g. ", "b.png) and 1 video (e.g. ", "a.mp4)")),
        (("a.jpg", "b.bmp", "c.gif"), ("2 images", "1 video (e.g. ", "c.gif)")),
        (("a.mp4", "b.mp4", "c.tif"), ("2 videos", "1 image (e.g. ", "c.tif)")),
    ],
)
def test_both_in_one_source_are_refused(files, names, said):
    path = files(*names)
    with pytest.raises(UserError) as error:
        _ = open_source(path, "train").modality
    message = str(error.value)
    assert path in message and "\n" not in message and all(text in message for text in said), message


def test_shards_of_both_are_refused(files, tmp_path):
    write_shards(open_source(files("a.mp4", "b.png"), "train"), "train", str(tmp_path / "shards"), 1)
    with pytest.raises(UserError, match="1 video .* and 1 image|1 image .* and 1 video"):
        _ = open_source(f"shards:{tmp_path}/shards", "train").modality


@pytest.mark.parametrize(
    "names, modality",
    [
        (("a.mp4=.jpg", "b.mp4", "c.mp4"), "video"),  # one wrong file does not decide
        (("a.png=.mp4", "b.png"), "image"),
        (("a.mp4=.jpg", "b.mp4=.png"), "image"),  # all are named wrongly
        (("a.gif", "b.mp4"), "video"),
        (("a.png=.gif", "b.mp4"), "video"),  # as an animated PNG
    ],
)
def test_the_kind_is_that_of_the_content_if_the_name_agrees(files, names, modality):
    assert open_source(files(*names), "train").modality == modality


@pytest.mark.parametrize(
    "names, broken, said",
    [
        (("a.mp4=.jpg", "b.mp4"), 0, "a.mp4 is an image"),
        (("a.png", "b.png=.gif"), 1, "b.png is a video"),
        (("a.jpg", "b.jpg=.mp4"), 1, "b.jpg is a video"),
    ],
)
def test_content_of_another_kind_is_a_broken_file(files, names, broken, said):
    load = SampleLoader(open_source(files(*names), "train"), 4, 10.0, 32, Augment())
    assert len(load.decode(1 - broken, 0.5)) == (1 if load.source.modality == "image" else 4)
    with pytest.raises(DecodeError, match=said):
        load.decode(broken, 0.5)
    assert said in load.reason(broken)


@pytest.mark.parametrize("name, other, found", [("a.mp4", "image", "videos"), ("b.png", "video", "images")])
def test_a_head_for_the_other_kind_is_told(files, name, other, found):
    model = model_config("tubevit_nano8", heads={kind: Head(2, kind, ("x", "y")) for kind in ("image", "video")})
    path = files(name)
    with pytest.raises(UserError, match=rf"list.csv holds {found} \(.*{name}\), head {other} takes {other}s") as error:
        open_eval(model, "data", dataset_config(source=path, split="train", head=other), "tubes")
    assert "[None]" not in str(error.value)
    right = "image" if other == "video" else "video"
    assert open_eval(model, "data", dataset_config(source=path, split="train", head=right), "tubes")
