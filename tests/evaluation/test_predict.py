import numpy as np
import pytest

import tubevit
from tests.data.clips import CountedPath, write_clip
from tubevit.errors import DecodeError, UserError
from tubevit.evaluation import predict


@pytest.fixture(scope="module")
def model(tiny_run):
    return tubevit.load_model(tiny_run)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mkv", range(0, 4000, 40), size=(64, 64))


def test_a_file_is_opened_once(model, clip, digits_cache):
    image = min((digits_cache / "images" / "test").iterdir())
    for path, every, count in ((clip, None, 1), (clip, 1.0, 4), (image, None, 1)):
        counted = CountedPath(path)
        predictions = list(predict(model, [counted], every=every))
        assert counted.count == 1 and len(predictions) == count and predictions[0].error is None


def test_files_that_fail_do_not_end_the_others(model, clip, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"damaged")
    bad, good = predict(model, [tmp_path / "bad.mp4", clip], top=2, keep_pixels=True)
    assert bad.file == tmp_path / "bad.mp4" and isinstance(bad.error, DecodeError) and bad.labels == {}
    assert good.kind == "video" and good.error is None and good.features.shape == (24,)
    assert [len(labels) for labels in good.labels.values()] == [2] and list(good.labels) == ["motion"]
    np.testing.assert_array_equal(good.pixels, tubevit.read_video(clip, **model.input)[0])
    (refused,) = predict(model, [clip], every=1.0, head="digit")  # the file ends with its error
    assert "takes images" in str(refused.error) and refused.features is not None


def test_features_need_no_head(tiny_run, model, clip):
    bare = tubevit.load_model(tiny_run, num_classes=0)
    (found,) = predict(bare, [clip], top=0)
    assert found.features.base is None  # no view, which would keep all of JAX's array for each clip of a long video
    np.testing.assert_allclose(found.features, bare.features(tubevit.read_video(clip, **bare.input))[0], atol=1e-5)
    with pytest.raises(UserError, match="no head to predict with"):
        predict(bare, [clip])
    with pytest.raises(UserError, match="did you mean 'motion'"):
        predict(model, [clip], head="moton")


def test_a_file_that_the_system_refuses(tiny_run, tmp_path):
    """Not missing, but for example without permission, or with a name that is too long: the others are predicted."""
    write_clip(tmp_path / "clip.mp4", [40 * i for i in range(30)])
    refused, other = predict(tubevit.load_model(tiny_run), [tmp_path / f"{'x' * 300}.mp4", tmp_path / "clip.mp4"])
    assert refused.features is None and isinstance(refused.error, DecodeError) and "too long" in str(refused.error)
    assert other.error is None and other.features is not None
