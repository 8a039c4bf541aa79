"""What predictions are worth: accuracies by shot group, calibration, and LoMa and RSD, which LOS is about."""

from utils.metrics.accuracy import predictions as predictions
from utils.metrics.accuracy import shot_accuracy as shot_accuracy
from utils.metrics.logits import logits_magnitude as logits_magnitude
from utils.metrics.logits import regularized_std as regularized_std
