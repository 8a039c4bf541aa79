"""Files from elsewhere: flipped bits, cuts, hostile pickles, sizes, wrong facts; old files for ever."""

import ast
import gc
import io
import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests import attacks
from tests.bad_inputs.checkpoints import hostile
from tests.helpers import last_line, long_form, run_evaluate
from tests.spoil import KINDS, block_lost, cuts, flipped, refused, unnoticed
from utils.base.digest import same_bits
from utils.base.errors import UserError, complain, exit_cleanly, printable
from utils.base.safe_load import load_plain
from utils.run import checkpoint
from utils.run.folder import Run, csv_text
from utils.settings.config import resolve
from utils.settings.parse import EVALUATE

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
OLD = {
    "v1_stage1.pth": "test overall=35.80 many=98.00 medium=74.67 few=6.00 selected_on=last",
    "v1_stage2_marc.pth": "test overall=49.20 many=100.00 medium=84.00 few=23.33 selected_on=last",
}


@pytest.mark.parametrize("name", OLD)
def test_a_checkpoint_of_format_version_1_loads_for_ever_and_scores_what_it_scored(tmp_path, name):
    text = last_line(run_evaluate(tmp_path, "--pretrained_pth", DATA / name))
    found, stated = (
        [float(word.partition("=")[2]) for word in line.split()[1:5]] for line in (text, OLD[name])
    )
    assert found == pytest.approx(stated, abs=0.5), text  # one image in 400 may fall otherwise on another CPU


def test_checkpoints_that_were_released_or_are_under_way_load_too():
    paths = sorted((ROOT / "checkpoints").rglob("*.pth"))
    assert len(paths) >= 2 and all(checkpoint.read(path).facts["num_class"] == 100 for path in paths)


@long_form(60, 5000)
@pytest.mark.parametrize("harm", [flipped, block_lost])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_or_a_lost_block_at_a_random_place_is_noticed_or_has_no_effect_at_all(
    tmp_path, kind, harm, count, record_property
):
    found = refused(kind, tmp_path, count, harm)
    assert found >= 0.9 * count
    record_property("found", f"{found} of {count} refused by name; {count - found} in dead bytes")


@long_form(20, 200)
@pytest.mark.parametrize("harm", [flipped, block_lost])
def test_without_the_digest_it_goes_unnoticed(tmp_path, harm, count, record_property):
    found = unnoticed(tmp_path, count, harm)
    assert found >= 0.75 * count
    record_property("found", f"{found} of {count} read as other weights without a word")


@long_form(200, 2000)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_at_every_record_and_at_random_lengths_is_noticed(tmp_path, kind, count, record_property):
    total = cuts(kind, tmp_path, count)
    assert total > count + 5
    record_property("found", f"{total} of {total} cuts refused by name")


@pytest.mark.parametrize("old", [False, True])
def test_the_hostile_file_of_the_bad_inputs_would_run_where_pickle_reads_it(tmp_path, old):
    """Their rows find that nothing of it has run."""
    hostile(old)(tmp_path, None)
    torch.load(tmp_path / "bad", weights_only=False)
    assert (tmp_path / "marker").exists()


@long_form(60, 2500)
@pytest.mark.parametrize("kind", attacks.KINDS)
def test_attack_files_are_refused_whatever_they_do_and_take_neither_memory_nor_time(
    tmp_path, kind, count, record_property
):
    tried, refused, mutations, spoilt, grown = attacks.limited_attack(kind, tmp_path, count)
    assert tried == refused > 70 and mutations == count and spoilt > count / 2
    record_property(
        "found", f"{refused} of {tried} refused; of {mutations} mutations {spoilt}; {grown} MB of memory"
    )


SHARED = torch.arange(12.0)
SOUND = {
    "tied weights": {"a": SHARED, "b": SHARED, "part": SHARED.view(3, 4)[1:, ::2]},
    "every kind": {
        str(kind): torch.ones(3).to(kind)
        for kind in (torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int16)
    },
    "odd shapes": {"none": torch.zeros(0, 3), "one": torch.tensor(3), "order": torch.ones(2, 3, 4, 5).mT},
    "a module's": torch.nn.BatchNorm2d(3).state_dict() | {"p": torch.nn.Parameter(torch.ones(2))},
    "plain data": {
        "deep": [{"a": (1, -(2**70), None, True, float("inf"))}],
        3: "\xe9\u20ac",
        "n": {"x", "y"},
    },
    "an optimiser's": torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1, momentum=0.9).state_dict(),
    "no dictionary": [torch.ones(2), [torch.zeros(1)]],
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", SOUND)
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path, name, old):
    path = tmp_path / "x.pth"
    torch.save(SOUND[name], path, _use_new_zipfile_serialization=not old)
    wanted = torch.load(path, weights_only=True)
    for mapped in (False, True):
        found = load_plain(path, mapped)
        if name == "plain data":
            assert found == wanted
        else:
            assert same_bits(wanted, found)
    if name == "tied weights":
        found["a"].fill_(7)
        assert found["b"].eq(7).all() and found["part"].eq(7).all()


def test_numbers_of_numpy_beside_weights_are_read_as_numbers(tmp_path):
    torch.save({"w": torch.ones(2), "best": np.float64(0.5), "epoch": np.int32(-7)}, tmp_path / "x.pth")
    found = load_plain(tmp_path / "x.pth")
    assert (found["best"], found["epoch"]) == (0.5, -7) and type(found["epoch"]) is int


def test_what_was_read_back_from_a_file_holds_it_no_longer_than_its_tensors_live(tmp_path):
    """Without a collector of circles: a file system could not be unmounted, and memory would pile up."""
    torch.save({"w": torch.ones(1000)}, tmp_path / "held.pth")
    mapped, maps = "held.pth", Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc/self/maps")
    gc.disable()
    try:
        found = load_plain(tmp_path / "held.pth", mapped=True)
        assert mapped in maps.read_text(errors="replace")
        del found
        assert mapped not in maps.read_text(errors="replace")
    finally:
        gc.enable()


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one_or_the_new_one(tmp_path):
    path, done = tmp_path / "x.pth", threading.Event()
    states = [{"w": torch.full((length,), float(length))} for length in (10, 5000)]
    for state in states:
        torch.save(state, tmp_path / f"{len(state['w'])}.pth")
    os.link(tmp_path / "10.pth", path)

    def replace():
        while not done.is_set():
            for length in (5000, 10):
                os.link(tmp_path / f"{length}.pth", tmp_path / "next")
                os.replace(tmp_path / "next", path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        found = [len(load_plain(path)["w"]) for _ in range(500)]
    finally:
        done.set()
        thread.join()
    assert set(found) == {10, 5000}


# ---- text from elsewhere

FORGED = "x\ntest overall=99.99 many=- medium=- few=- selected_on=last"
OBEYED = "a\x1b[2Jb\rc\td\be\x7ff\x9b1mg\u2028h\u2029i\u202ej\u2066k\u200fl\udce9m"
NAMES = ["Übergröße", "日本語\u3000の名", "نامه\u200cها", "👩\u200d🔬", "e\u0301", "50\u00a0€", "ไทย"]


@pytest.mark.parametrize("text", [FORGED, OBEYED])
def test_text_that_a_terminal_obeys_or_that_forges_a_line_is_escaped_wherever_it_is_said(
    tmp_path, capsys, text
):
    given = {"dataset": "digits_lt", "out": tmp_path, "cur_stage": "stage1"}
    run = Run(resolve(EVALUATE, given), "evaluate_stage1")
    run.log("one", text)
    run.result(text)
    complain(text)
    shown = ascii(text)[1:-1]
    assert printable(text) == shown and printable(shown) == shown
    out, err = capsys.readouterr()
    assert out == f"one\n{shown}\n{shown}\n" and err == f"{shown}\n"
    assert (run.folder / "log.txt").read_text() == out


def test_the_line_of_an_error_has_names_and_commands_as_they_are(capsys):
    def refused() -> None:
        raise UserError("no `python x.py --out 'a  b'`\n")

    with pytest.raises(SystemExit):
        exit_cleanly(refused)
    assert capsys.readouterr().err == "error: no `python x.py --out 'a  b'`\\n\n"


def test_names_in_any_script_are_printed_as_they_are():
    assert [printable(name) for name in NAMES] == NAMES


def test_nothing_prints_what_a_file_says_but_the_functions_that_clean_it():
    """A literal, as for a bar, is not from a file."""
    rooms = [ROOT / room for room in ("utils", "datasets", "models", "losses")]
    sources = [*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]
    printing = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
        and not all(isinstance(word, ast.Constant) for word in node.args)
    }
    assert len(sources) > 50 and printing == {"utils/base/errors.py"}


def test_a_cell_that_a_spreadsheet_would_run_is_text_and_every_other_cell_is_as_it_was():
    cells = ["=1+1", "+a", "-b.png", "@c", "\td", "a=1", "", "ä,b", None]
    figures = [-1.5, 2.0, None, 1e-9, 0.1, 3.0, 4.0, 5.0, 6.0]
    text = csv_text({"name": cells, "figure": figures})
    found = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype={"name": str})
    assert found["name"].tolist() == ["'=1+1", "'+a", "'-b.png", "'@c", "'\td", "a=1", "", "ä,b", ""]
    plain = pd.DataFrame({"figure": figures}).to_csv(index=False)
    assert pd.read_csv(io.StringIO(text))[["figure"]].to_csv(index=False) == plain
