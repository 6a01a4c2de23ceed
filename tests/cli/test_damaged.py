"""A checkpoint with one parameter that is not a number: every verb that computes with it says so in a line."""

import gc
import json

import numpy as np
import pytest

import tubevit
from tubevit.cli import main
from tubevit.errors import RunError, UserError
from tubevit.evaluation import predict
from tubevit.visualize.evaluated import evaluate_stored

DAMAGED = "not finite: the parameters may be damaged"


@pytest.fixture(scope="module")
def damaged(tiny_run, tmp_path_factory):
    """A saved model with NaN in the kernel of a tube."""
    model = tubevit.load_model(tiny_run)
    kernel = model.tokenizer.tubes["0"].kernel
    kernel[...] = kernel[...].at[0, 0, 0, 0, 0].set(np.nan)
    folder = tmp_path_factory.mktemp("damaged") / "model"
    tubevit.save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def clips(digits_cache):
    return sorted((digits_cache / "videos" / "test").iterdir())[:2]


@pytest.mark.parametrize(
    "code, command",
    [
        (2, "predict --checkpoint {model} {clip}"),
        (2, "predict --checkpoint {model} --json {clip}"),
        (2, "predict --checkpoint {model} --every 1 --features {out}/new.npz {clip}"),
        (2, "predict --checkpoint {model} --tokens {out}/new {clip}"),
        (1, "evaluate --checkpoint {model} --data moving_digits --head motion --out {out}/new.json"),
        (1, "evaluate --checkpoint {model} --data moving_digits --head motion --probe linear --out {out}/new.json"),
        (1, "evaluate --checkpoint {model} --data moving_digits --head motion --probe knn --out {out}/new.json"),
        (1, "report {model} --out {out}/new"),
        (2, "report {model} --out {out}/new {clip}"),
    ],
)
def test_one_line_and_no_results(damaged, clips, tmp_path, capsys, code, command):
    capsys.readouterr()
    assert main(command.format(model=damaged, clip=clips[0], out=tmp_path).split()) == code
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("tubevit: ")]
    assert DAMAGED in line and "Traceback" not in err and not out
    gc.collect()  # a temporary folder goes with the generator that made it, which the error still refers to
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_files_are_left_out_one_by_one(damaged, clips, capsys):
    assert main(["predict", "--checkpoint", str(damaged), "--json", *map(str, clips)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count(DAMAGED) == 2 and "2 of 2 files are left out" in err


def test_a_damaged_head_leaves_the_features(tiny_run, clips):
    model = tubevit.load_model(tiny_run)
    bias = model.heads["motion"].bias
    bias[...] = bias[...].at[1].set(np.inf)
    (found,) = predict(model, clips[:1])
    assert isinstance(found.error, UserError) and DAMAGED in str(found.error) and not found.labels
    (found,) = predict(model, clips[:1], top=0)
    assert found.error is None and np.isfinite(found.features).all()
    config = json.loads((tiny_run / "config.json").read_text())
    with pytest.raises(RunError, match=f"moving_digits: 8 of 8 predictions are {DAMAGED}"):
        evaluate_stored(model, "moving_digits", config["data"]["eval"]["moving_digits"])
