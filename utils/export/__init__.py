"""Trained classifiers outside of this repository's scripts: from Python, and as files for a service."""

from utils.base.lazy import face

__getattr__, __all__ = face(
    __name__, {"classifier": "Classifier load_classifier", "estimator": "LongTailClassifier"}
)
