"""What predictions are worth: accuracies by shot group, calibration, and LoMa and RSD, which LOS is about."""

from utils.metrics.accuracy import (
    Scores,
    ShotAccuracy,
    calibration_error,
    epoch_columns,
    epoch_figures,
    predictions,
    report,
    shot_accuracy,
    topk_accuracy,
)
from utils.metrics.logits import logits_magnitude, regularized_std

__all__ = [
    "Scores",
    "ShotAccuracy",
    "calibration_error",
    "epoch_columns",
    "epoch_figures",
    "logits_magnitude",
    "predictions",
    "regularized_std",
    "report",
    "shot_accuracy",
    "topk_accuracy",
]
