"""The estimator of scikit-learn's kind: it trains what stage 2 trains, and passes scikit-learn's checks."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

import main_stage2
from tests.helpers import call, places
from tests.stage2 import result_lines
from tests.test_own_features import digits_pack
from utils.base.errors import SettingError
from utils.export import LongTailClassifier


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> tuple:
    """The folder of the digits' pack, and its four arrays."""
    root = tmp_path_factory.mktemp("digits")
    digits_pack(root, 5.0, 3.0)
    return root, *(np.load(root / f"{name}.npy") for name in ("train_x", "train_y", "test_x", "test_y"))


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks_hold():
    # array_api needs SCIPY_ARRAY_API in the environment before scipy is loaded
    found = check_estimator(LongTailClassifier(finetune_epoch=3), on_fail=None, on_skip=None)
    assert len(found) > 50
    assert {one["check_name"] for one in found if one["status"] != "passed"} <= {"check_array_api_input"}


@pytest.mark.parametrize("words", [{}, {"method": "la", "tau": 0.5}, {"method": "etf", "finetune_epoch": 3}])
def test_it_trains_what_stage_2_trains_on_a_pack_of_the_same_arrays(arrays, tmp_path, words):
    root, x, y, test_x, test_y = arrays
    argv = [word for name, value in words.items() for word in (f"--{name}", value)]
    text = call(main_stage2.main, *places(tmp_path), "--features", root / "out.pack", "--seed", "0", *argv)
    names = np.array([f"digit {label}" for label in range(10)])
    model = LongTailClassifier(**words).fit(x, names[y])
    assert f"{100 * model.score(test_x, names[test_y]):.2f}" == result_lines(text)[-1]["overall"]
    assert model.classes_.tolist() == names.tolist() and model.predict(test_x)[0] in names


def test_validation_chooses_among_the_settings_of_several_methods(arrays):
    _, x, y, test_x, test_y = arrays
    model = LongTailClassifier("tau_norm,la", "val", tau=[0.0, 1.0]).fit(x, y)
    given = LongTailClassifier("tau_norm,la", "val", tau=[0.0, 1.0]).fit(x, y, test_x[:100], test_y[:100])
    assert {model.method_, given.method_} <= {"tau_norm", "la"} and model.setting_.startswith("tau=")
    assert given.score(test_x, test_y) > 0.7
    again = pickle.loads(pickle.dumps(clone(model).fit(x, y)))
    assert np.array_equal(again.predict_proba(test_x), model.predict_proba(test_x))
    assert len(pickle.dumps(model)) < 50_000, "the training rows are in it"


def test_methods_come_as_a_list_too_and_none_is_the_default(arrays):
    _, x, y, test_x, _ = arrays
    words = {"finetune_epoch": 1}
    for one, same in ((None, "los"), (["ncm", "los"], "ncm,los")):
        first, second = (LongTailClassifier(method, **words).fit(x, y) for method in (one, same))
        assert np.array_equal(first.predict_proba(test_x), second.predict_proba(test_x))


def test_it_stands_in_scikit_learns_cross_validation(arrays):
    _, x, y, *_ = arrays
    assert cross_val_score(LongTailClassifier("logreg"), x, y, cv=2).min() > 0.5


ROWS, AB = np.random.default_rng(0).normal(size=(20, 4)), "ab" * 10
BAD = {
    "an unknown method": ({"method": "lso"}, ROWS, AB, "no 'lso', did you mean lws or los"),
    "a method that is no name": ({"method": 3}, ROWS, AB, "method must be a name or several, got 3"),
    "a selection by test": ({"select": "test"}, ROWS, AB, "select must be last or val, got 'test'"),
    "an option out of range": ({"method": "la", "tau": -1.0}, ROWS, AB, "tau must be 0 or more"),
    "an option that is no number": ({"method": "la", "tau": "x"}, ROWS, AB, "tau must be a number, got"),
    "half an epoch": ({"finetune_epoch": [1, 2.5]}, ROWS, AB, "must be a whole number, got 2.5"),
    "an option of another method": ({"tau": 1.0}, ROWS, AB, "tau: no method of this run has it"),
    "X and y of different length": ({}, ROWS, "ab" * 9, "inconsistent numbers of samples: .20, 18."),
    "one class only": ({}, ROWS, "a" * 20, "one class only, a"),
    "features of zeros": ({}, 0 * ROWS, AB, "all training features are alike"),
    "constant features": ({}, 0 * ROWS + 0.1, AB, "all training features are alike"),
    "a value that is no number": ({}, np.where(ROWS > 2, np.nan, ROWS), AB, "Input X contains NaN"),
    "no row to validate on": ({"select": "val"}, ROWS[:2], "ab", "no class has a row to spare"),
}


@pytest.mark.parametrize(("words", "x", "y", "says"), BAD.values(), ids=BAD)
def test_what_it_cannot_take_is_a_value_error_in_a_line(words, x, y, says):
    with pytest.raises(ValueError, match=says):
        LongTailClassifier(**words).fit(x, list(y))


def test_validation_rows_of_other_classes_and_unknown_options_are_refused():
    with pytest.raises(SettingError, match="y_val holds c, which is no label of y"):
        LongTailClassifier().fit(ROWS, list(AB), ROWS[:2], ["a", "c"])
    with pytest.raises(SettingError, match="X_val and y_val belong together"):
        LongTailClassifier().fit(ROWS, list(AB), y_val=["a", "b"])
    with pytest.raises(TypeError, match="LongTailClassifier got smooth, an option of no method"):
        LongTailClassifier(smooth=0.5)
    with pytest.raises(TypeError, match="LongTailClassifier got seed, say random_state"):
        LongTailClassifier(seed=0)
