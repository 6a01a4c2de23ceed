import json

import numpy as np
import pytest

from tubevit.config.experiment import open_experiment
from tubevit.config.resolve import resolve
from tubevit.data.moving_digits import write_video
from tubevit.recipes.finetune import finetune_config
from tubevit.training.baseline import pixel_baseline, warn_if_worse


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """`experiment(labels)`: fine-tuning on 24 dark and bright clips, every third held out, with one of them broken."""
    folder = tmp_path_factory.mktemp("bright")
    rng = np.random.default_rng(0)
    for i in range(24):
        write_video(folder / f"{i}.mp4", rng.integers(0, 100, (4, 20, 30, 3)).astype(np.uint8) + 100 * (i % 2), 4)
    (folder / "4.mp4").write_bytes(b"broken")

    def make(labels):
        rows = [f"{i}.mp4,{labels[i % len(labels)]},{'val' if i % 3 == 2 else 'train'}" for i in range(24)]
        (folder / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
        return open_experiment(resolve(finetune_config(str(folder / "list.csv"))))

    return make


def test_what_grey_values_tell(experiment, tmp_path, caplog):
    """Brightness is told by them; the result is kept, so that a run that resumes does not compute it again."""
    caplog.set_level("INFO")
    opened = experiment(["dark", "bright"])
    assert pixel_baseline(opened, tmp_path, 0.01) == 1.0
    assert "16x16 grey pixels has top1 1.000 on 8 held-out files (15 to train" in caplog.text
    stored = json.loads((tmp_path / "baseline.json").read_text())
    (tmp_path / "baseline.json").write_text(json.dumps(stored | {"top1": 0.25}))
    assert pixel_baseline(opened, tmp_path, 0.01) == 0.25
    assert pixel_baseline(experiment(["dark", "bright", "bright"]), tmp_path, 0.01) != 0.25  # other labels
    (tmp_path / "baseline.json").write_text("{")
    assert pixel_baseline(opened, tmp_path, 0.01) == 1.0


def test_some_files_where_decoding_is_slow(experiment, tmp_path):
    """A minute of two threads decodes 12 files of 10 s; at least 32 are shared among the splits."""
    opened = experiment(["dark", "bright"])
    pixel_baseline(opened, tmp_path, 10.0)
    stored = json.loads((tmp_path / "baseline.json").read_text())
    assert (stored["train"], stored["held_out"]) == (15, 8)


@pytest.mark.parametrize("labels", [["a|b", "a"]])
def test_labels_without_a_baseline(experiment, tmp_path, labels):
    assert pixel_baseline(experiment(labels), tmp_path, 0.01) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "baseline, top1, warned", [(0.6, 0.5, True), (0.6, 0.6, False), (None, 0.5, False), (0.6, None, False)]
)
def test_warning(caplog, baseline, top1, warned):
    warn_if_worse(baseline, {"eval/data/top1": top1})
    assert ("less than the 0.600 of a linear model" in caplog.text) == warned
