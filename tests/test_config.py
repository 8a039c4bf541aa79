"""Arguments: presets, precedence, contradictions and help."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import main_stage1
from datasets import to_folder
from tests.helpers import call, run_stage1
from utils.base.errors import UserError
from utils.reproduce.grid import read_grid
from utils.settings.checks import check_ranges
from utils.settings.config import asked_for, resolve
from utils.settings.parse import ALL, ARGUMENTS, CHECK, EVALUATE, STAGE1, STAGE2, parse
from utils.settings.presets import PRESETS, preset_for

PUBLIC_NAMES = {
    *("data_dir", "dataset", "num_class", "imb_ratio", "network", "epochs", "batch_size", "cur_stage", "lr"),
    *("momentum", "wd", "nesterov", "finetune_epoch", "finetune_lr", "finetune_wd", "label_smooth"),
    *("pretrained_pth", "out", "workers", "seed", "gpu"),
}


def settle(script: str, line: str = "", known: dict | None = None) -> object:
    return resolve(script, parse(script, line.split()), known)


def test_every_public_name_is_kept():
    assert {argument.name for argument in ARGUMENTS} >= PUBLIC_NAMES


def test_the_published_recipe_is_the_default_on_cifar100_lt():
    stage1, stage2 = settle(STAGE1, "--imb_ratio 100 --cur_stage stage1"), settle(STAGE2, "--imb_ratio 100")
    published = {"network": "resnet34", "epochs": 200, "batch_size": 64, "lr": 0.01, "momentum": 0.9}
    published |= {"wd": 5e-3, "nesterov": False, "warmup_epochs": 0, "num_class": 100, "select": "last"}
    assert {name: getattr(stage1, name) for name in published} == published
    published = {"finetune_epoch": 20, "finetune_lr": 5e-4, "finetune_wd": 0.0, "label_smooth": 0.98}
    assert {name: getattr(stage2, name) for name in published} == published


def test_a_thin_network_brings_its_own_recipe_and_the_users_word_wins_over_it():
    config = settle(STAGE1, "--network resnet32 --wd 0.01")
    assert (config.lr, config.source("lr")) == (0.1, "preset")
    assert (config.wd, config.source("wd")) == (0.01, "given")


def test_a_checkpoints_facts_win_over_the_preset_and_the_users_word_over_what_may_differ():
    known = {"dataset": "digits_lt", "imb_ratio": 20.0, "network": "resnet20", "val_source": "heldout"}
    config = settle(STAGE2, "", known)
    assert (config.dataset, config.imb_ratio, config.network) == ("digits_lt", 20.0, "resnet20")
    assert config.val_source == "heldout" and config.source("val_source") == "checkpoint"
    assert settle(STAGE2, "--val_source unused", known).val_source == "unused"


def test_a_preset_for_warm_up_gives_way_to_a_short_run():
    assert settle(STAGE1, "--network resnet32 --epochs 1").warmup_epochs == 0


def test_a_logit_gap_says_the_same_as_its_delta():
    config = settle(STAGE2, "--dataset digits_lt --logit_gap 0.7472144018302211")
    assert config.label_smooth == pytest.approx(0.9) and config.source("label_smooth") == "from --logit_gap"
    deltas = settle(STAGE2, "--logit_gap 1,2").label_smooth
    assert deltas == settle(STAGE2, "--logit_gap 2,1").label_smooth[::-1]


@pytest.mark.parametrize("network", [None, "resnet32"])
def test_every_default_is_one_that_the_user_could_give(network):
    for dataset in (*PRESETS, "a pack of one's own"):
        preset = preset_for(dataset, network)
        check_ranges(preset)
        for argument in ARGUMENTS:
            value = preset[argument.name]
            assert not argument.choices or value in (None, *argument.choices, dataset), dataset


def test_a_resolved_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        settle(STAGE1).lr = 3.0


def help_of(script: str, *words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        asked_for(script, main_stage1.__doc__, ["--help", *words])
    assert ended.value.code == 0
    return said.getvalue()


@pytest.mark.parametrize("script", [*ALL, CHECK])
def test_help_all_is_grouped_and_names_every_argument_of_the_script(script):
    text = help_of(script, "all")
    assert "\nlabel over-smoothing:\n" in text or script in (CHECK, EVALUATE)
    assert "\ndata:\n" in text and max(map(len, text.splitlines())) <= 110
    for argument in ARGUMENTS:
        assert (f"  --{argument.name}" in re.findall(r"^  --\w+", text, re.M)) == (script in argument.scripts)


@pytest.mark.parametrize("script", ALL)
def test_help_is_a_screen_of_what_people_change_with_two_examples(script):
    text = help_of(script)
    assert len(text.splitlines()) <= 60 and text.count("  python main_stage1.py") == 1
    assert "--nesterov" not in text and "--imb_ratio FLOAT" in text and "[100]" in text


def test_help_has_the_defaults_of_the_data_set_and_network_that_are_named():
    assert "[200]" in help_of(STAGE1) and "[60]" in help_of(STAGE1, "--network", "resnet32")
    assert "[90]" in help_of(STAGE1, "--dataset", "imagenet_lt")
    assert help_of(STAGE2) == help_of(STAGE2), "a seed that is drawn is no default"
    assert "warm" in (text := help_of(STAGE1, "all")) and re.search(r"rises linearly \[0\]", text)
    assert "[0.98]" in help_of(STAGE2) and "[0.98]" not in help_of(STAGE1), "stage 1 has plain labels"


def test_the_published_protocol_averages_no_mirror_images_where_there_are_to_be_none():
    words = {"dataset": "folder", "protocol": "published"}
    for more, tta in (({}, True), ({"no_tta": True}, False), ({"no_flip": True}, False)):
        assert resolve(STAGE1, words | more).tta is tta


def test_workers_are_said_to_have_no_use_where_the_set_lives_on_the_device(tmp_path):
    text = run_stage1(tmp_path, "--epochs", "1", "--workers", "2")
    assert "--workers 2 has no use here" in text


@pytest.mark.parametrize("script", [*ALL, CHECK])
def test_a_tilde_in_a_path_is_the_home_of_the_user_whoever_was_to_expand_it(script, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = [a.name for a in ARGUMENTS if a.kind is Path and script in a.scripts]
    given = parse(script, [f"--{name}=~/x" for name in paths])
    assert paths and given == dict.fromkeys(paths, Path("/home/me/x"))
    with pytest.raises(UserError, match="~nobody-of-this-name/x"):
        parse(script, [f"--{paths[0]}=~nobody-of-this-name/x"])
    assert parse(script, [f"--{paths[0]}=./~"]) == {paths[0]: Path("~")}


def test_a_tilde_in_a_grid_and_in_the_tools_is_the_home_of_the_user_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    grid = 'methods = "all"\nstage2_seeds = 1\nselect = "last"\nviews = "pack"\n[[cells]]\n'
    (tmp_path / "g.toml").write_text(f'{grid}features = "~/pack"\n')
    with pytest.raises(UserError, match=f"{tmp_path}/g.toml, cell 1: {tmp_path}/pack does not exist"):
        read_grid("~/g.toml")
    call(to_folder.main, "--dataset", "digits_lt", "--to=~/digits")
    assert (tmp_path / "digits" / "train").is_dir()
