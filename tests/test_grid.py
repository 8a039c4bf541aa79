"""Grids: the shipped ones are as planned, cells have folders of their own, a bad file is one line."""

import re
from pathlib import Path

import pytest

from tests.helpers import refusal
from utils.reproduce import __main__ as reproduce
from utils.reproduce.grid import read_grid

SMALL = """
dataset = "digits_lt"
network = "resnet8"
imb_ratio = 50
seeds = [0, 1]
methods = ["los", "ce"]
stage2_seeds = [0, 1]
select = ["last", "val"]
views = 2
recipe = "--epochs 3 --wd 1e-3"
stage2 = "--finetune_epoch 2"

[[cells]]
"""
RELEASED = Path(__file__).resolve().parent.parent / "checkpoints" / "released" / "cifar100_lt"
OF_PACK = f"""
seeds = [0, 1]
methods = "all"
stage2_seeds = 0
select = "last"
[[cells]]
views = "pack"
features = "{RELEASED}/IR=100/resnet32_features.safetensors"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_the_shipped_grids_are_those_of_the_plan():
    thin, paper = read_grid("thin"), read_grid("paper")
    ratios = [cell.protocol["imb_ratio"] for cell in thin]
    assert ratios == [*["100"] * 3, *["50"] * 3, *["10"] * 3, "500", "200", "100", "100"]
    assert [cell.seed for cell in thin] == [0, 1, 2] * 3 + [0] * 4
    assert [cell.config().wd for cell in thin] == [1e-3] * 11 + [1e-4, 1e-3]
    assert [cell.config().mixup for cell in thin] == [0] * 12 + [0.2]
    assert {(cell.config().network, cell.config().epochs) for cell in thin} == {("resnet32", 60)}
    assert {(cell.config().network, cell.config().epochs) for cell in paper} == {("resnet34", 200)}
    assert [cell.protocol["imb_ratio"] for cell in paper] == ["100", "50", "10"]
    assert all(cell.selections == ("last", "val") and cell.views == "fresh" for cell in thin + paper)
    assert all(cell.methods == ("all",) for cell in thin + paper)
    assert len({cell.name for cell in thin + paper}) == len(thin + paper)


def test_a_cell_says_what_it_differs_in_and_the_scripts_get_every_word(tmp_path):
    text = SMALL + 'recipe = "--epochs 2"\nimb_ratio = [10, 20.5]\nseeds = 7\n'
    cells = read_grid(str(written(tmp_path, text)), Path("elsewhere"))
    assert [cell.name for cell in cells] == [
        "digits_lt_IR=10_resnet8_epochs-2_seed7",
        "digits_lt_IR=20.5_resnet8_epochs-2_seed7",
    ]
    data = "--dataset digits_lt --network resnet8 --imb_ratio 20.5 --data_dir elsewhere"
    stage1, stage2 = (" ".join(words) for words in (cells[1].stage1_words(), cells[1].stage2_words("val")))
    place = f"output/reproduce/{cells[1].name}"
    assert stage1 == f"{data} --seed 7 --epochs 2 --out {place} --ckpt_dir {place}/checkpoints"
    words = "--method los,ce --seeds 0,1 --select val --views 2 --finetune_epoch 2"
    assert stage2.startswith(f"{data} {words} --out {place}/val_2_finetune_epoch-2 --ckpt_dir ")
    assert cells[1].label("val") == "val_2_finetune_epoch-2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"has no \[\[cells\]\]: there is nothing to run"),
        ("[[cells]", "cannot be read: .*line 1"),
        ("[[cells]]", "cell 1: it needs seeds"),
        (SMALL + "seed = 1", "cell 1: unknown key 'seed', known: dataset, "),
        (SMALL + "methods = 'loss'", "--method has no 'loss', did you mean los or los_step?"),
        (SMALL + "methods = []", "methods is empty"),
        (SMALL + "methods = ['ce', 'ce']", "methods names a value twice"),
        (SMALL + "methods = ['list']", "--method list stands alone|--method has no 'list'"),
        (SMALL + "network = 'resnet9'", "--network: .*resnet9"),
        (SMALL + "network = 'os:abort'", "network 'os:abort' is code that no file may choose to run"),
        (SMALL + "imb_ratio = true", "imb_ratio takes int or float, or a list, got True"),
        (SMALL + "imb_ratio = 0.5", "--imb_ratio must be a number of 1 or more"),
        (SMALL + "seeds = -1", "--seed must be 0 or more|expected one argument"),
        (SMALL + "select = 'best'", "argument --select: invalid choice: 'best'"),
        (SMALL + "views = 'new'", 'views must be "fresh", "pack" or a number'),
        (SMALL + "views = 'pack'", 'features and views = "pack" belong together'),
        (SMALL + "features = 'x'", 'features and views = "pack" belong together'),
        (SMALL + "recipe = ['--wd', '1']", "recipe takes str, got"),
        (SMALL + "recipe = '--epoch 3'", "unknown argument --epoch, did you mean --epochs?"),
        (SMALL + "recipe = '--seed 1'", "recipe may not say --seed: a key of the grid or the runner says it"),
        (SMALL + "recipe = '--help'", "recipe may not ask for help"),
        (SMALL + "recipe = '\"'", "No closing quotation"),
        (SMALL + "stage2 = '--tau 1'", "--tau: no method of this run has it"),
        (
            SMALL + "stage2 = '--label_smooth 0.5,0.9'",
            'select "last" chooses no setting of los: name',
        ),
        (SMALL + "stage2 = '--pretrained_pth x'", "stage2 may not say --pretrained_pth"),
        (SMALL + "[[cells]]", "names a stage 1 twice: digits_lt_IR=50_resnet8_epochs-3-wd-1e-3_seed0"),
        (f"x = {'[' * 3000}{']' * 3000}", "cannot be read: maximum recursion depth"),
        (f"{'a.' * 3000}a = 1", "cannot be read|has no .*cells"),
        (SMALL.replace("seeds = [0, 1]", f"seeds.{'a.' * 900}a = 1", 1), "cell 1: "),
        (SMALL + 'features = "a\\u0000b"\nviews = "pack"', "cell 1: features takes str"),
        (OF_PACK, "a pack is of one stage 1: seeds names 2"),
    ],
)
def test_a_bad_grid_is_one_line_that_names_file_and_cell(tmp_path, text, said):
    path = written(tmp_path, text)
    message = refusal(reproduce.main, "--grid", path, "--out", tmp_path / "out")
    assert message.startswith(f"grid {path}")
    assert re.search(said, message), message
    assert list(tmp_path.iterdir()) == [path]


def test_a_grid_file_of_ones_own_may_have_any_name(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert [cell.seed for cell in read_grid("mine")] == [0, 1]


def test_a_shipped_grid_of_packs_is_read_in_any_folder_and_names_the_packs_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = [cell.stage1().source for cell in read_grid("packs")]
    assert len(named) == 4 and all(name.startswith("checkpoints/released/cifar100_lt/") for name in named)


def test_an_unknown_grid_is_one_line_with_the_known_ones(tmp_path):
    for name in ("thick", tmp_path, tmp_path / "none.toml"):
        message = refusal(reproduce.main, "--grid", name)
        assert message.endswith("(known: packs, paper, resnet34, thin, or a file)")
    assert "--jobs must be 1 or more" in refusal(reproduce.main, "--grid", "paper", "--jobs", "0")


def test_released_stage_1_models_are_found_for_the_cells_of_the_thin_grid(tmp_path):
    cells = read_grid("thin", out=tmp_path)
    found = [cell.stage1() for cell in cells]
    assert len(found) == 13 and all("/resnet32_stage1.pth" in stage1.source for stage1 in found)
    assert len({stage1.digest for stage1 in found}) == 13
