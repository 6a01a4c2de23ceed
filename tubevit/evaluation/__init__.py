"""Evaluation of checkpoints and prediction of files."""

from tubevit.evaluation.checkpoint import (
    EvalOptions,
    evaluate_checkpoint,
    evaluate_each,
    inference_fields,
    write_evaluations,
)
from tubevit.evaluation.evaluate import Evaluation
from tubevit.evaluation.predict import Prediction, find_files, predict

__all__ = [
    "EvalOptions", "Evaluation", "Prediction", "evaluate_checkpoint", "evaluate_each", "find_files",
    "inference_fields", "predict", "write_evaluations",
]  # fmt: skip
