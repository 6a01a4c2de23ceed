import dataclasses
import os

import numpy as np
import pytest

from tubevit.data.decode import decode_clip
from tubevit.data.moving_digits import write_video
from tubevit.data.small_copy import small_copy
from tubevit.data.sources import open_source
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import UserError


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A source of four clips, one of them small; the cache is empty."""
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path / "cache"))
    for i, (height, width) in enumerate([(96, 128), (128, 96), (96, 96), (30, 40)]):
        write_video(tmp_path / f"{i}.mp4", np.full((6, height, width, 3), 60 * i + 30, np.uint8), 6)
    rows = [f"{i}.mp4,{'ba'[i % 2]},train" for i in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return lambda: open_source(str(tmp_path / "list.csv"), "train")


def test_copies_are_small_and_made_once(clips, tmp_path, caplog):
    caplog.set_level("INFO")
    source = clips()
    copied = small_copy(source, "train", 48, 0.01)
    assert (copied.name, copied.classes, copied.listed) == (source.name, ("a", "b"), 4)
    labels = dict(zip(source.keys, source.labels, strict=True))
    sizes = {}
    for i, key in enumerate(copied.keys):
        assert copied.labels[i] == labels[key]
        clip, original = decode_clip(copied.media(i)), decode_clip(key)
        sizes[os.path.basename(key)] = clip.shape[1:3]
        assert abs(int(clip.mean()) - int(original.mean())) <= 3 and len(clip) == len(original)
    assert sizes == {"0.mp4": (48, 64), "1.mp4": (64, 48), "2.mp4": (48, 48), "3.mp4": (30, 40)}
    assert caplog.text.count("copying 4 files") == 1
    assert small_copy(clips(), "train", 48, 0.01).keys == copied.keys and caplog.text.count("copying") == 1
    os.utime(tmp_path / "0.mp4", (1, 1))  # another file under the same name
    small_copy(clips(), "train", 48, 0.01)
    small_copy(clips(), "train", 32, 0.01)
    renamed = dataclasses.replace(clips(), name="./list.csv")  # another spelling of the same source
    assert small_copy(renamed, "train", 48, 0.01).name == "./list.csv"
    assert len(os.listdir(cache_folder() / "copies")) == 4


def test_broken_files(clips, tmp_path, caplog):
    (tmp_path / "0.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match="1 of the 4 files .* are broken.*loader.max_broken=0.1 allows fewer"):
        small_copy(clips(), "train", 48, 0.1)
    assert len(small_copy(clips(), "train", 48, 0.25)) == 3 and "they are left out" in caplog.text
