"""What a linear model of small grey clips reaches on the data of a fine-tuning run; a warning if the run is worse."""

import contextlib
import hashlib
import json
import logging
import os
import time

import numpy as np

from tubevit import storage
from tubevit.config.experiment import Experiment
from tubevit.data.pipeline import BatchShards
from tubevit.errors import DecodeError, UserError
from tubevit.evaluation.evaluate import EvalSettings, predict_source
from tubevit.evaluation.metrics import score
from tubevit.evaluation.pixels import MOST_FILES, SIDE, fit_ridge, grey_values, load_small, some_files, worse
from tubevit.sharding.agreement import SourceEntries, mapping_entries
from tubevit.sharding.hosts import run_on_main

logger = logging.getLogger(__name__)
_FILE = "baseline.json"
_SECONDS = 60  # of decoding at most
_ROWS = 16


def pixel_baseline(experiment: Experiment, workdir: str | os.PathLike, decoding: float) -> float | None:
    """Fit the probe `pixels` to the data of a fine-tuning run, once for a workdir; return and log its held-out top-1.

    If there are more files than a minute decodes, some of both splits are used.

    Args:
        experiment: its data sets are called `data`.
        workdir: receives baseline.json.
        decoding: seconds to decode a clip.

    Returns:
        The top-1, a share; None if files have several labels, or all of the training files the same one.
    """
    found = run_on_main(lambda: _known(experiment, workdir, decoding))
    if found:
        logger.info(
            f"baseline: a linear model of {SIDE}x{SIDE} grey pixels has top1 {found['top1']:.3f} on "
            f"{found['held_out']} held-out files ({found['train']} to train, {found['seconds']:.0f} s)"
        )
    return found["top1"] if found else None


def _known(experiment: Experiment, workdir: str | os.PathLike, decoding: float) -> dict | None:
    path, model = storage.join(workdir, _FILE), experiment.model
    train, held_out = experiment.train["data"].source, experiment.eval["data"].source
    entries = [*mapping_entries({"frames": model.frames, "fps": model.fps}), *SourceEntries(train)[:]]
    digest = hashlib.sha256(storage.encode("\n".join([*entries, *SourceEntries(held_out)[:]]))).hexdigest()
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        known = json.loads(storage.read_bytes(path))
        if known["of"] == digest:
            return known
    if train.multi_label or held_out.multi_label or len(np.unique(train.labels)) < 2:
        return None
    start, threads = time.perf_counter(), experiment.config.loader.threads
    most = min(2 * MOST_FILES, max(int(_SECONDS * threads / max(decoding, 1e-3)), 32))
    share = min(1.0, most / (len(train) + len(held_out)))
    parts = [some_files(source, max(int(share * len(source)), 16)) for source in (train, held_out)]
    values, settings = [], EvalSettings(threads=threads, host=BatchShards())
    try:
        for part in parts:
            load = load_small(part, model.frames, model.fps)
            found = predict_source(grey_values(), {}, load, _ROWS, settings)
            values.append((found.probabilities[found.used], part.labels[found.used]))
    except (DecodeError, UserError) as error:  # training will tell what is wrong
        logger.warning(f"no baseline: {error}")
        return None
    (x, y), (z, labels) = values
    if len(np.unique(y)) < 2 or not len(z):
        return None
    probabilities = np.zeros((len(z), len(train.classes)))
    classes, shares = fit_ridge(x, y, z)
    probabilities[:, classes] = shares
    result = {"top1": score(probabilities, labels)["top1"], "train": len(x), "held_out": len(z)}
    result |= {"seconds": round(time.perf_counter() - start, 1), "of": digest}
    storage.write_text(path, json.dumps(result) + "\n")
    return result


def warn_if_worse(baseline: float | None, results: dict[str, float | None]) -> None:
    """Warn if the results of a fine-tuning run are below its baseline."""
    reached = results.get("eval/data/top1")
    if baseline is not None and reached is not None and reached < baseline:
        logger.warning(f"{worse(reached, baseline)}; see baseline.json")
