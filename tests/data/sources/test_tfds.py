import multiprocessing
import pickle
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.clips import indices, write_clip
from tubevit.data.decode import decode_clip, decode_frames, decode_image, decode_media
from tubevit.data.sources import tfds_source
from tubevit.data.sources.tfds_source import open_tfds
from tubevit.data.tfds_videos import write_tfds
from tubevit.errors import DecodeError, UserError

IMAGENET = tfds.builder("imagenet2012").info.features


class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of given features and examples, under any name."""

    code_path = None

    def __init__(self, name, version, features, splits, keys=("image", "label"), **options):
        self.name, self.VERSION = name, tfds.core.Version(version)
        self.features, self.examples, self.keys = features, splits, keys
        super().__init__(**{"file_format": "array_record"} | options)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features, supervised_keys=self.keys)

    def _split_generators(self, manager):
        return {split: self._generate_examples(examples) for split, examples in self.examples.items()}

    def _generate_examples(self, examples):
        yield from enumerate(examples)


def png(value, channels=3):
    return cv2.imencode(".png", np.full((20, 30, channels), value, np.uint8))[1].tobytes()


def write(folder, *args, **options):
    Written(*args, data_dir=folder, **options).download_and_prepare()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet with TFDS's own features and classes, in a folder: 40 training and 5 validation images."""
    folder = tmp_path_factory.mktemp("tfds")
    examples = [{"file_name": f"{i}.png", "image": png(i), "label": i * 7 % 1000} for i in range(45)]
    write(folder, "imagenet2012", "5.1.0", IMAGENET, {"train": examples[:40], "validation": examples[40:]})
    return folder


def test_images_as_encoded_bytes(imagenet):
    name = f"tfds:imagenet2012@{imagenet}"
    train = open_tfds(name, "train")
    assert len(train) == train.listed == 40 and train.modality == "image" and not train.multi_label
    assert train.labels.dtype == np.int32 and train.name == name
    assert train.classes == tuple(IMAGENET["label"].names) and train.classes[:2] == ("n01440764", "n01443537")
    assert train.keys[17] == "imagenet2012/train[17]" and train.keys[-1] == "imagenet2012/train[39]"
    values = []
    for i in range(40):  # TFDS shuffles them
        assert isinstance(train.media(i), bytes)
        value = int(decode_image(train.media(i))[0, 0, 0])
        assert train.media(i) == png(value) and train.labels[i] == value * 7 % 1000
        values.append(value)
    assert sorted(values) == list(range(40))


def test_splits(imagenet):
    name = f"tfds:imagenet2012@{imagenet}"
    val, everything = open_tfds(name, "val"), open_tfds(name, "all")
    assert list(val.keys) == [f"imagenet2012/validation[{i}]" for i in range(5)]
    assert list(everything.keys) == list(open_tfds(name, "train").keys) + list(val.keys)
    assert everything.media(42) == val.media(2) and everything.labels[40:].tolist() == val.labels.tolist()
    assert open_tfds(name, "validation").labels.tolist() == val.labels.tolist()
    with pytest.raises(UserError, match=r"unknown split of tfds:imagenet2012@.* 'trian'; did you mean 'train'\?"):
        open_tfds(name, "trian")


def test_grey_images_have_three_channels(tmp_path):
    examples = [{"image": png(i, 1), "label": i % 10} for i in range(4)]
    write(tmp_path, "mnist", "3.0.1", tfds.builder("mnist").info.features, {"test": examples})
    source = open_tfds(f"tfds:mnist@{tmp_path}", "test")
    assert decode_image(source.media(3)).shape == (20, 30, 3) and source.classes == tuple("0123456789")
    assert open_tfds(f"tfds:mnist:3.0.1@{tmp_path}", "all").labels.tolist() == source.labels.tolist()


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1), (4, 6, 5, 3), (4, 6, 5, 1)])
def test_pixels(tmp_path, shape):
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["b", "a"]),
        }
    )
    write(tmp_path, "mine", "1.0.0", features, {"x": [{"image": np.full(shape, 9, np.uint8), "label": 1}]})
    source = pickle.loads(pickle.dumps(open_tfds(f"tfds:mine@{tmp_path}", "x")))
    pixels = source.media(0)
    assert pixels.shape == (*shape[:-1], 3) and pixels.dtype == np.uint8 and (pixels == 9).all()
    assert source.classes == ("b", "a") and source.modality == ("image" if len(shape) == 3 else "video")


def test_frames_of_pixels():
    """Spread over the video without a rate, like those of a file; else consecutive, as the rate is not stored."""
    clip = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)

    def shown(*arguments):
        return [int(frame[0, 0, 0]) for frame in decode_frames(clip, *arguments)]

    assert shown(4, None, 0.0) == [0, 3, 6, 9] and shown(4, None, 0.5) == [1, 4, 7, 10]
    assert shown(4, None, 1.0) == [2, 5, 8, 11] and shown(24, None, 0.0) == [i // 2 for i in range(24)]
    assert shown(4, 8.0, 0.5) == [4, 5, 6, 7] and shown(14, 8.0, 0.0) == [*range(12), 11, 11]
    assert shown() == list(range(12))
    assert decode_media(clip, 4, None, 0.0).frames[1][0, 0, 0] == 3


def _third(source):
    return source.media(3)


def test_read_in_a_spawned_process(imagenet):
    source = open_tfds(f"tfds:imagenet2012@{imagenet}", "train")
    media = source.media(3)  # files are open when it is pickled
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_third, (source,)) == media


def test_labels_of_large_sets_are_cached(imagenet, tmp_path, monkeypatch, said):
    monkeypatch.setenv("TUBEVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(tfds_source, "CACHED_FROM", 10)
    name = f"tfds:imagenet2012@{imagenet}"
    first = open_tfds(name, "train")
    assert "reading the labels of 40 records" in said[0]
    monkeypatch.setattr(tfds_source, "_parse", None)  # not parsed again
    assert open_tfds(name, "train").labels.tolist() == first.labels.tolist() and len(said) == 1
    with pytest.raises(TypeError):
        open_tfds(name, "all")  # another set of records is not that of `train`


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A csv of videos and what TFDS wrote of it, several labels each."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(4):
        write_clip(folder / f"{i}.mp4", range(0, 40 * (i + 3), 40))
    rows = "0.mp4,run|sit,train\n1.mp4,sit,train\n2.mp4,walk,train\n3.mp4,run,val\n"
    (folder / "clips.csv").write_text("path,label,split\n" + rows)
    path = write_tfds(str(folder / "clips.csv"), folder / "tfds", "my_clips")
    assert path == folder / "tfds" / "my_clips" / "1.0.0"
    return folder


def test_videos_of_our_own_builder(clips):
    source = open_tfds(f"tfds:my_clips@{clips / 'tfds'}", "train")
    assert source.classes == ("run", "sit", "walk") and source.multi_label and source.modality == "video"
    expected = {(clips / f"{i}.mp4").read_bytes(): label for i, label in enumerate([[1, 1, 0], [0, 1, 0], [0, 0, 1]])}
    assert {source.media(i): source.labels[i].tolist() for i in range(3)} == expected
    val = open_tfds(f"tfds:my_clips@{clips / 'tfds'}", "val")
    assert indices(decode_clip(val.media(0))) == list(range(6)) and len(val) == 1
    plain = tfds.data_source("my_clips", split="val", data_dir=clips / "tfds")[0]
    assert plain["video"] == val.media(0) and plain["path"].decode() == str(clips / "3.mp4")


def test_builder_refuses(clips, tmp_path):
    with pytest.raises(UserError, match="expected lower-case letters, digits and _; found 'My-Clips'"):
        write_tfds(str(clips / "clips.csv"), tmp_path, "My-Clips")
    (tmp_path / "a.png").write_bytes(png(3))
    (tmp_path / "images.csv").write_text("path,label,split\na.png,x,train\n")
    with pytest.raises(UserError, match="expected videos; found images"):
        write_tfds(str(tmp_path / "images.csv"), tmp_path, "images", ["train"])


def test_not_prepared(imagenet, tmp_path):
    with pytest.raises(UserError) as error:
        open_tfds(f"tfds:imagenette/160px-v2@{imagenet}", "train")
    for part in (
        "is not prepared",
        "there: imagenet2012",
        "download_and_prepare()",
        "'imagenette/160px-v2'",
        "array_record",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match="unknown data set 'imagenet_2012'.*did you mean 'imagenet2012'"):
        open_tfds(f"tfds:imagenet_2012@{imagenet}", "train")
    with pytest.raises(UserError, match="tfds:imagenet2012:1.2@"):
        open_tfds(f"tfds:imagenet2012:1.2@{imagenet}", "train")
    with pytest.raises(UserError, match="imagenette/none"):
        open_tfds(f"tfds:imagenette/none@{imagenet}", "train")


def test_without_label(tmp_path):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "mask": tfds.features.Image()})
    write(tmp_path, "masks", "1.0.0", features, {"x": [{"image": png(1), "mask": png(2)}]}, keys=("image", "mask"))
    with pytest.raises(UserError, match="its class label; found image and mask, of the features"):
        open_tfds(f"tfds:masks@{tmp_path}", "x")


def test_unpublished_labels(tmp_path):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": IMAGENET["label"]})
    write(tmp_path, "mine", "1.0.0", features, {"test": [{"image": png(i), "label": i - 1} for i in range(2)]})
    with pytest.raises(UserError, match="1 records of test have no label; choose another split"):
        open_tfds(f"tfds:mine@{tmp_path}", "test")


def test_damaged_files(imagenet, tmp_path):
    shutil.copytree(imagenet, tmp_path / "copy")
    (file,) = (tmp_path / "copy").rglob("*validation.array_record*")
    content = file.read_bytes()
    name = f"tfds:imagenet2012@{tmp_path / 'copy'}"
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{file} cannot be read: .*; expected 5 records"):
        open_tfds(name, "val")
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        open_tfds(name, "val")
    file.write_bytes(content)
    source = open_tfds(name, "val")
    media = [source.media(i) for i in range(5)]
    file.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    source, found = pickle.loads(pickle.dumps(source)), []
    for i in range(5):
        try:
            found.append(source.media(i))
        except DecodeError as error:
            assert f"cannot read imagenet2012/validation[{i}]: " in str(error)
            found.append(None)
    assert found.count(None) == 1 and all(a in (b, None) for a, b in zip(found, media))
