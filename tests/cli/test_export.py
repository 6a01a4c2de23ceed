import json

import numpy as np
import pytest

import tubevit
from tubevit.convert.export import load_exported


def test_formats(tiny_run, done, tmp_path):
    text = done(["export", tiny_run, tmp_path / "a", "--format", "safetensors"])
    assert [line.split()[0] for line in text.splitlines()] == [
        str(tmp_path / "a" / name) for name in ("config.json", "model.safetensors")
    ]
    text = done(["export", tiny_run, tmp_path / "c", "--format", "torch"])
    assert [line.split()[0] for line in text.splitlines()] == [
        str(tmp_path / "c" / name) for name in ("config.json", "model.safetensors", "tubevit_torch.py")
    ]
    (tmp_path / "b").mkdir()  # an empty folder will do
    command = ["export", tiny_run, tmp_path / "b", "--format", "jax", "--head", "digit", "--platforms", "cpu,tpu"]
    text = done(command)
    assert [line.split()[0] for line in text.splitlines()] == [
        str(tmp_path / "b" / name) for name in ("config.json", "model.jaxexport", "params.safetensors")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["platforms"] == ["cpu", "tpu"] and config["labels"] == {"digit": [str(i) for i in range(10)]}
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    logits = np.asarray(tubevit.load_model(tiny_run)(image, head="digit"), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(load_exported(tmp_path / "b")(image), shares, rtol=1e-5)


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--format", "tflite"], ["--format: invalid choice: 'tflite'", "safetensors", "jax", "torch", "onnx"]),
        ([], ["required: --format"]),
        (["--format", "jax"], ["several heads: pass --head, one of motion, digit"]),
        (["--format", "onnx"], ["several heads: pass --head, one of motion, digit"]),
        (["--format", "jax", "--head", "moton"], ["unknown head 'moton'; did you mean 'motion'"]),
        (["--format", "jax", "--head", "motion", "--platforms", "cpu,gpu"], ["unknown platform 'gpu'", "cuda (NVIDIA"]),
        (["--format", "jax", "--head", "motion", "--platforms", ""], ["--platforms is empty"]),
        (["--format", "torch", "--head", "motion"], ["--head goes with --format jax and onnx"]),
        (["--format", "onnx", "--head", "motion", "--platforms", "cpu"], ["--platforms goes with --format jax"]),
        (["--format", "jax", "--platform", "cpu"], ["no argument '--platform'; did you mean '--platforms'"]),
    ],
)
def test_bad_flags(tiny_run, refused, tmp_path, flags, parts):
    refused(["export", tiny_run, tmp_path / "a", *flags], *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags", [["--format", "safetensors"], ["--format", "jax", "--head", "digit"], ["--format", "torch"]], ids="+".join
)
def test_folders_that_are_refused(tiny_run, refused, tmp_path, flags):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        refused(["export", tiny_run, tmp_path / name, *flags], f"{tmp_path / name} exists already; name a new folder")
    refused(["export", tiny_run, tmp_path / "file/inside", *flags], f"cannot write {tmp_path}/file/inside: ")
    refused(["export", tiny_run, "gs://bucket/a", *flags], "writes to a local folder; found gs://bucket/a")
    refused(["export", tiny_run.parent / "tin", tmp_path / "a", *flags], "unknown checkpoint", str(tiny_run))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]
    assert (tmp_path / "full/mine").read_text() == (tmp_path / "file").read_text() == "kept"
