"""Feature packs of the user's own arrays, by `python -m utils.features pack`."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from datasets.long_tail import TEST_SEED, held_out_mask
from tests.helpers import call
from utils.features.__main__ import main as features_main
from utils.packs.pack import read_pack


class Arrays:
    """Arrays in .npy files below `root`, by argument: the digits' pixels, long-tailed, but for `changed`."""

    def __init__(self, root: Path, num_class: int = 10, **changed: object) -> None:
        x, y = load_digits(return_X_y=True)
        x, y = (x[y < num_class] / 16).astype(np.float32), y[y < num_class]
        rank = np.array([(y[:i] == label).sum() for i, label in enumerate(y)])  # place within its class
        train, test = rank < 90 - 8 * y, (rank >= 100) & (rank < 130)
        self.out, self.arrays = root / "out.pack", {"train_x": x[train], "train_y": y[train]}
        self.arrays |= {"test_x": x[test], "test_y": y[test]} | changed
        self.arrays = {name: array for name, array in self.arrays.items() if array is not None}
        for name, array in self.arrays.items():
            np.save(root / f"{name}.npy", array, allow_pickle=True)
        self.words = ["pack", "--out", self.out]
        for name in self.arrays:
            self.words += [f"--{name}", root / f"{name}.npy"]

    def pack(self, *words: object) -> str:
        return call(features_main, *self.words, *words)


def test_the_command_packs_arrays_and_fits_a_classifier(tmp_path):
    given = Arrays(tmp_path)
    text = given.pack("--name", "my_digits")
    pack = read_pack(given.out)
    assert np.array_equal(pack.train[0], given.arrays["train_x"]) and pack.train.shape[0] == 1
    assert np.array_equal(pack.test[0], given.arrays["test_x"]) and pack.val is None
    assert np.array_equal(pack.train_labels, given.arrays["train_y"])
    assert pack.facts["dataset"] == "my_digits" and pack.facts["imb_ratio"] is None
    assert pack.facts["class_counts"] == list(range(90, 10, -8)) and pack.facts["class_names"][9] == "9"
    assert pack.facts["val_source"] == "none" and pack.facts["train_views"] == "plain"
    logits = pack.test[0] @ pack.fc_weight.T + pack.fc_bias
    assert (logits.argmax(dim=1) == pack.test_labels).double().mean() > 0.85
    first, last = text.splitlines()
    told = re.fullmatch(
        r"stage-1 classifier: logistic regression on 540 training features, C = (\S+) of 0.01, 0.1, 1, 10, "
        r"(\S+)% on 3 held-out fifths of them, nearest class mean (\S+)%; training accuracy (\S+)%; \S+ s",
        first,
    )
    penalty, *percents = map(float, told.groups())
    assert penalty in (0.1, 1, 10) and min(percents) > 85
    size = f"{given.out.stat().st_size / 2**20:.1f} MiB"
    assert last == (
        f"pack {given.out}: 540 training (1 view(s)), 300 test, 0 validation features, 64 wide, 10 classes, "
        f"{size}, sha256 {pack.digest[:12]}"
    )


def test_labels_may_be_text_and_fractions_part_one_array_as_they_part_images(tmp_path):
    text = np.array(["bee", "ant", "cat", "bee", "ant", "cat"] * 5)
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    given = Arrays(tmp_path, train_x=x, train_y=text, test_x=None, test_y=None)
    given.pack("--test_fraction", "0.2", "--val_fraction", "0.1")
    pack = read_pack(given.out)
    assert pack.facts["class_names"] == ["ant", "bee", "cat"] and pack.facts["class_counts"] == [8, 8, 8]
    counts = [np.bincount(labels) for labels in (pack.train_labels, pack.val_labels, pack.test_labels)]
    assert np.array_equal(counts, [[7] * 3, [1] * 3, [2] * 3]) and pack.facts["val_source"] == "heldout"
    rows = {row.tobytes(): "abc".index(name[0]) for row, name in zip(x, text, strict=True)}
    for features, labels in ((pack.train, pack.train_labels), (pack.test, pack.test_labels)):
        assert [rows.pop(row.tobytes()) for row in features[0].numpy()] == labels.tolist()
    chosen = held_out_mask(np.unique(text, return_inverse=True)[1], 0.2, TEST_SEED)
    assert np.array_equal(pack.test[0], x[chosen])


def test_the_command_keeps_views_validation_names_and_a_given_classifier(tmp_path):
    (tmp_path / "names.txt").write_text("zéro\none\ntwo\n", encoding="utf-8-sig")  # a byte order mark
    x, y = np.random.default_rng(0).normal(size=(2, 6, 4)), np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    weight, bias = np.eye(3, 4), np.arange(3.0)
    images, classifier = {"train_x": x, "test_x": x, "val_x": x[0]}, {"fc_weight": weight, "fc_bias": bias}
    given = Arrays(tmp_path, **images, train_y=y, test_y=y, val_y=y, **classifier)
    text = given.pack("--class_names", tmp_path / "names.txt", "--dtype", "fp16")
    pack = read_pack(given.out)
    assert pack.train.dtype == torch.float16 and np.array_equal(pack.train, x.astype(np.float16))
    assert pack.val.shape == (1, 6, 4) and pack.facts["val_source"] == "own" and pack.facts["val_clean"]
    assert pack.facts["class_names"] == ["zéro", "one", "two"] and pack.facts["train_views"] == "augmented"
    assert np.array_equal(pack.fc_weight, weight) and np.array_equal(pack.fc_bias, bias)
    assert len(text.splitlines()) == 1 and "6 training (2 view(s)), 6 test, 6 validation features" in text


def test_validation_features_choose_the_penalty_of_the_fitted_classifier(tmp_path):
    """Noise in many features over few images: what fits them best predicts worst."""
    draw, y = np.random.default_rng(0), np.repeat([0, 1], 40)
    noisy = {name: draw.normal(size=(80, 60)) for name in ("train_x", "val_x", "test_x")}
    for x in noisy.values():
        x[:, 0] += y
    given = Arrays(tmp_path, **noisy, train_y=y, val_y=y, test_y=y)
    text = given.pack()
    assert "C = 0.01 of" in text and "% on validation, nearest class mean" in text
    pack = read_pack(given.out)
    fitted = LogisticRegression(C=0.01, tol=1e-6).fit(StandardScaler().fit_transform(pack.train[0]), y)
    rows = np.concatenate([-fitted.coef_, fitted.coef_]) / 2 / pack.train[0].std(dim=0, correction=0).numpy()
    assert pack.fc_weight.numpy() == pytest.approx(rows, abs=1e-3)


def test_classes_of_one_image_each_leave_nothing_to_choose_a_penalty_by(tmp_path):
    x, y = np.eye(3), np.arange(3)
    text = Arrays(tmp_path, train_x=x, train_y=y, test_x=x, test_y=y).pack()
    assert re.match(r"stage-1 classifier: .* 3 training features, C = 1; training accuracy 100.00%;", text)


def test_the_fitted_classifier_of_two_classes_has_two_rows_and_decides_as_well(tmp_path):
    given = Arrays(tmp_path, num_class=2)
    assert "training accuracy 100.00%" in given.pack()
    pack = read_pack(given.out)
    assert pack.fc_weight.shape == (2, 64)
    assert ((pack.test[0] @ pack.fc_weight.T + pack.fc_bias).argmax(dim=1) == pack.test_labels).all()


def test_arrays_in_fortran_order_are_taken_as_they_are_meant_and_the_files_stay_as_they_are(tmp_path):
    x, y = np.asfortranarray(np.random.default_rng(0).normal(size=(4, 3))), np.array([0, 1, 0, 1])
    given = Arrays(tmp_path, train_x=x, train_y=y, test_x=x, test_y=y)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")}
    given.pack()
    assert np.array_equal(read_pack(given.out).train[0], x.astype(np.float32))
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.npy")}
