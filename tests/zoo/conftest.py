"""Models for the tests of the Hub: one of ours, and one of Hugging Face."""

import pickle

import pytest

import tubevit
from tests.convert.test_both_ways import PLAIN
from tubevit.convert import convert
from tubevit.models.config import Head


@pytest.fixture(scope="module")
def model(tiny):
    return tiny({"kind": Head(3, "any", ("cat", "dog", "cow"))}, depth=1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "saved"
    tubevit.save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def vit(tiny):
    return tiny({"default": Head(5, "any", ("cat", "dog", "cow", "hen", "bee"))}, depth=1, **PLAIN)


@pytest.fixture(scope="module")
def foreign(vit, tmp_path_factory):
    """A folder of Hugging Face, with the same weights as a pickle."""
    folder = tmp_path_factory.mktemp("foreign")
    tubevit.save_model(vit, folder / "ours")
    convert(folder / "ours", folder / "theirs", format="hugging-face")
    (folder / "theirs/README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "theirs/pytorch_model.bin").write_bytes(pickle.dumps("never fetched"))
    (folder / "theirs/training_args.bin").write_bytes(pickle.dumps("never fetched"))
    return folder / "theirs"
