"""The order of classes against the lists that other packages carry (the extra `peers`)."""

import importlib.util
import pathlib
import random

import pytest

from tubevit.data.sources import open_source


def torchvision_names(which):
    """A list of torchvision's metadata; its file alone, which needs neither torch nor compiled operators."""
    package = importlib.util.find_spec("torchvision")
    if package is None:
        pytest.fail("torchvision is not installed: make test-extras installs it")
    path = pathlib.Path(package.submodule_search_locations[0]) / "models" / "_meta.py"
    spec = importlib.util.spec_from_file_location("torchvision_meta", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, which)


def test_kinetics_400(tmp_path):
    names = torchvision_names("_KINETICS400_CATEGORIES")
    rows = [(name, f"id{i:09d}") for i, name in enumerate(names)]
    (tmp_path / "clips").mkdir()
    for _, youtube_id in rows:
        (tmp_path / "clips" / f"{youtube_id}.mp4").touch()
    random.Random(0).shuffle(rows)
    lines = [f'"{name}",{youtube_id},3,13,train' for name, youtube_id in rows]
    (tmp_path / "train.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]))
    source = open_source(f"k400:{tmp_path}/train.csv@{tmp_path}/clips", "train")
    assert source.classes == tuple(names) and source.notes == ()
    for key, label in zip(source.keys, source.labels):
        assert pathlib.Path(key).stem == f"id{label:09d}"


def test_imagenet(tmp_path):
    names = torchvision_names("_IMAGENET_CATEGORIES")
    if importlib.util.find_spec("timm") is None:
        pytest.fail("timm is not installed: make test-extras installs it")
    info = pathlib.Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    wnids = (info / "imagenet_synsets.txt").read_text().split()
    lemmas = dict(line.split("\t") for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    for wnid in random.Random(0).sample(wnids, len(wnids)):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        (tmp_path / "train" / wnid / f"{wnid}_1.JPEG").touch()
    source = open_source(f"imagenet:{tmp_path}", "train")
    assert source.classes == tuple(wnids) and source.notes == ()
    # torchvision has names of its own, mostly one of WordNet's.
    assert len(names) == 1000
    alike = [name.lower() in lemmas[wnid].lower() for wnid, name in zip(source.classes, names)]
    assert sum(alike) > 900
