"""Means of the training features, in chunks and from any precision, and the nearest-mean head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import build_head
from models.heads.means import CHUNK, class_means
from tests.heads import COUNTS, K, array, largest_tensor, made, training_set


def loop_means(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    members = [features[labels == k] for k in range(num_classes)]
    return np.array([rows.mean(axis=0) if len(rows) else np.zeros(features.shape[1]) for rows in members])


def on_disk(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A memory-mapped float16 tensor of more rows than two chunks, and labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 2 * CHUNK + 17)
    mapped = np.memmap(path, np.float16, "w+", shape=(len(labels), 8))
    mapped[:] = generator.normal(size=mapped.shape) + labels[:, None]
    return torch.from_numpy(mapped), torch.from_numpy(labels)


# ---- means


def test_means_and_shares_equal_loops_and_an_empty_class_has_mean_and_share_zero():
    features, labels = training_set()
    means, shares = class_means(features, labels, K + 1)
    np.testing.assert_allclose(array(means), loop_means(array(features), array(labels), K + 1), rtol=1e-12)
    np.testing.assert_allclose(array(shares), np.array([*COUNTS, 0]) / sum(COUNTS), rtol=1e-12)
    np.testing.assert_allclose(array(shares @ means), array(features).mean(axis=0), rtol=1e-12)


def test_memory_mapped_half_precision_features_are_averaged_in_double_precision(tmp_path):
    features, labels = on_disk(tmp_path / "features")
    means, shares = class_means(features, labels, 6)
    assert features.dtype == torch.float16 and means.dtype == shares.dtype == torch.float64
    expected = loop_means(array(features).astype(np.float64), array(labels), 6)
    np.testing.assert_allclose(array(means), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["ncm", "los_step"])
def test_a_head_from_memory_mapped_features_is_the_one_from_memory(kind, tmp_path):
    features, labels = on_disk(tmp_path / "features")
    fc = nn.Linear(8, 6)
    mapped = build_head(kind, fc, features=features, labels=labels).state_dict()
    in_memory = build_head(kind, fc, features=features.double(), labels=labels).state_dict()
    assert mapped["weight"].dtype == torch.float32
    assert all(torch.equal(mapped[name], in_memory[name]) for name in in_memory)


@pytest.mark.parametrize("kind", ["ncm", "los_step"])
def test_a_head_never_copies_all_features_at_once(kind, tmp_path):
    features, labels = on_disk(tmp_path / "features")
    fc = nn.Linear(8, 6)
    largest = largest_tensor(lambda: build_head(kind, fc, features=features, labels=labels))
    assert largest == CHUNK * 8


def test_features_and_labels_that_do_not_fit_have_no_means():
    features, labels = training_set()
    with pytest.raises(ValueError, match=r"features must be \[27, 7\]"):
        class_means(features, labels[1:], K)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3, got 0\.\.4"):
        class_means(features, labels, 4)
    with pytest.raises(ValueError, match="no training feature"):
        class_means(features[:0], labels[:0], K)


# ---- the nearest mean


def test_nearest_mean_equals_loops_also_for_a_class_of_one_image(fc, x):
    features, labels = map(array, training_set())
    centre = features.mean(axis=0)
    unit = [(row - centre) / np.linalg.norm(row - centre) for row in features]
    logits = array(made("ncm", fc)(x))
    for i, image in enumerate(array(x)):
        for k in range(K):
            mean = np.mean([u for u, label in zip(unit, labels, strict=True) if label == k], axis=0)
            y = image - centre
            expected = y @ mean / (np.linalg.norm(y) * np.linalg.norm(mean))
            assert logits[i, k] == pytest.approx(expected, rel=1e-10)


def test_nearest_mean_gives_the_only_image_of_a_class_the_cosine_1(fc):
    features, labels = training_set()
    assert made("ncm", fc)(features[labels == 4])[0, 4].item() == pytest.approx(1)


def test_a_feature_at_the_centre_is_equally_near_to_every_mean(fc):
    head = made("ncm", fc)
    assert torch.equal(head(head.centre[None]), torch.zeros(1, K, dtype=torch.float64))


def test_nearest_mean_refuses_a_class_without_features_and_what_does_not_fit(fc):
    features, labels = training_set()
    with pytest.raises(ValueError, match="class 3 has no training feature"):
        build_head("ncm", fc, features=features[labels != 3], labels=labels[labels != 3])
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.4, got 1\.\.5"):
        build_head("ncm", fc, features=features, labels=labels + 1)
    with pytest.raises(ValueError, match=r"features must be \[27, 7\]"):
        build_head("ncm", fc, features=features, labels=labels[1:])
