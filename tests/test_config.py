"""Arguments: presets, precedence, contradictions and help."""

import pytest

import evaluate
import main_stage1
import main_stage2
from tests.helpers import call, places, refusal
from utils.arguments import ALL, ARGUMENTS, EVALUATE, STAGE1, STAGE2, parse
from utils.config import resolve
from utils.errors import UserError

PUBLIC_NAMES = {
    *("data_dir", "dataset", "num_class", "imb_ratio", "network", "epochs", "batch_size", "cur_stage", "lr"),
    *("momentum", "wd", "nesterov", "finetune_epoch", "finetune_lr", "finetune_wd", "label_smooth"),
    *("pretrained_pth", "out", "workers", "seed", "gpu"),
}


def settle(script: str, line: str = "", known: dict | None = None) -> object:
    return resolve(script, parse(script, "", line.split()), known)


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


def test_a_resolved_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        settle(STAGE1).lr = 3.0


def test_help_is_grouped_and_names_every_argument_of_the_script(capsys):
    for script in ALL:
        with pytest.raises(SystemExit):
            parse(script, "what it does", ["--help"])
        text = capsys.readouterr().out
        assert "label over-smoothing:" in text or script != STAGE2
        assert "data:" in text and "run:" in text
        for argument in ARGUMENTS:
            assert (f"--{argument.name}" in text.split()) == (script in argument.scripts), argument.name


@pytest.mark.parametrize(
    ("script", "line", "expected"),
    [
        (STAGE1, "--imb_ratio 0", "--imb_ratio must be a number of 1 or more, got 0"),
        (STAGE1, "--imb_ratio -3", "--imb_ratio must be a number of 1 or more, got -3"),
        (STAGE1, "--imb_ratio nan", "--imb_ratio must be a finite number"),
        (STAGE1, "--imb_ratio ten", "invalid float value: 'ten'"),
        (STAGE1, "--lr 0", "--lr must be above 0"),
        (STAGE1, "--lr inf", "--lr must be a finite number"),
        (STAGE1, "--wd -1", "--wd must be 0 or more"),
        (STAGE1, "--momentum 1", "--momentum must be at least 0 and below 1"),
        (STAGE1, "--nesterov --momentum 0", "--nesterov needs a --momentum above 0"),
        (STAGE1, "--epochs 0", "--epochs must be 1 or more"),
        (STAGE1, "--epochs 1.5", "invalid int value: '1.5'"),
        (STAGE1, "--epochs 5 --warmup_epochs 5", "--warmup_epochs 5 must be below --epochs 5"),
        (STAGE1, "--batch_size 0", "--batch_size must be 1 or more"),
        (STAGE1, "--num_class 10", "--num_class 10, but cifar100_lt has 100 classes"),
        (STAGE1, "--seed -1", "--seed must be 0 or more"),
        (STAGE1, "--gpu 1 --device cpu", "--gpu 1 contradicts --device cpu"),
        (STAGE1, "--cur_stage stage2", "--cur_stage stage2 contradicts main_stage1.py, which runs stage1"),
        (STAGE2, "--cur_stage stage1", "--cur_stage stage1 contradicts main_stage2.py, which runs stage2"),
        (STAGE1, "--dataset mnist", "invalid choice: 'mnist'"),
        (STAGE1, "--network resnet99", "--network: unknown network 'resnet99'"),
        (
            STAGE1,
            "--finetune_lr 1",
            "--finetune_lr is an argument of main_stage2.py, main_stage1.py has no use",
        ),
        (STAGE2, "--epochs=3", "--epochs is an argument of main_stage1.py, main_stage2.py has no use for it"),
        (STAGE1, "--imb_ration 10", "unknown argument --imb_ration, did you mean --imb_ratio?"),
        (STAGE1, "stray", "unknown argument stray"),
        (STAGE2, "--label_smooth 1", "--label_smooth must be below 1, got 1: at 1 every label is 1/K"),
        (STAGE2, "--label_smooth 1.2", "above 1 the true class would be the least likely"),
        (STAGE2, "--label_smooth -0.1", "--label_smooth must be in [0, 1), got -0.1"),
        (STAGE2, "--label_smooth nan", "--label_smooth must be a finite number"),
        (STAGE2, "--logit_gap 0", "--logit_gap must be above 0, got 0"),
        (STAGE2, "--logit_gap 1 --label_smooth 0.9", "--label_smooth and --logit_gap say the same thing"),
        (STAGE2, "--views -1", "--views must be 0 or more"),
        (STAGE2, "--views 2 --bn_mode train", "--bn_mode train recomputes the features"),
        (STAGE2, "--val_source none --select val", "--select val needs validation images"),
        (STAGE1, "--val_fraction 0.1", "--val_fraction has a meaning with --val_source heldout only"),
        (STAGE1, "--val_source heldout --val_fraction 1", "--val_fraction must be between 0 and 1"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(script, line, expected):
    with pytest.raises(UserError) as caught:
        settle(script, line)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ({"imb_ratio": 100.0}, "--imb_ratio 50"),
        ({"network": "resnet32"}, "--network resnet34"),
        ({"dataset": "cifar100_lt"}, "--dataset cifar10_lt"),
        ({"num_class": 100}, "--num_class 10"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(known, line):
    with pytest.raises(UserError, match="the checkpoint or pack was made with"):
        settle(EVALUATE, line, known)


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(tmp_path):
    start = ("--dataset", "digits_lt", *places(tmp_path))
    assert "CUDA devices: try --device cpu" in refusal(main_stage1.main, *start, "--device", "cuda:77")
    assert "is not a device" in refusal(main_stage1.main, *start, "--device", "gpu")
    assert "is not supported" in refusal(main_stage1.main, *start, "--device", "meta")
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for option in ("--out", "--ckpt_dir"):
        places_given = dict(zip(("--out", "--ckpt_dir"), (tmp_path / "a", tmp_path / "b"), strict=True))
        places_given[option] = tmp_path / "file" / "below"
        words = [word for pair in places_given.items() for word in pair]
        assert "cannot write to" in refusal(main_stage1.main, "--dataset", "digits_lt", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_evaluate_wants_to_know_what_to_evaluate():
    assert "say what to evaluate" in refusal(evaluate.main, "--dataset", "digits_lt")


def test_stage_2_without_stage_1_names_the_place_the_command_and_another_network(tmp_path, digits):
    start = ("--dataset", "digits_lt", "--imb_ratio", "7", *places(tmp_path))
    message = refusal(main_stage2.main, *start)
    assert str(tmp_path / "ckpt" / "digits_lt" / "IR=7" / "resnet8_stage1.pth") in message
    assert "python main_stage1.py --dataset digits_lt --imb_ratio 7 --network resnet8" in message
    assert not (tmp_path / "out").exists()
    other = ("--dataset", "digits_lt", "--network", "resnet20", *places(digits.root))
    assert "there is one for --network resnet8" in refusal(main_stage2.main, *other)


def test_workers_are_said_to_have_no_use_where_the_set_lives_on_the_device(tmp_path):
    text = call(
        main_stage1.main, "--dataset", "digits_lt", *places(tmp_path), "--epochs", "1", "--workers", "2"
    )
    assert "--workers 2 has no use here" in text
