"""The table of re-training methods, and the heads that a command line asks for."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import main_stage2
from losses import LOSSES
from models import HEADS, build_head
from tests.heads import COUNTS, D, K, seeded, training_set
from tests.helpers import call, files_below, last_line, places, refusal, run_folder, run_stage2
from utils.heads.plan import HeadPlan, plan_heads
from utils.settings.chosen import chosen_methods, lead_method
from utils.settings.commands import ROOT
from utils.settings.config import resolve
from utils.settings.method import TRAINING
from utils.settings.methods import METHODS, MOVES, OPTIONS, PATHS, SETTINGS, TAUS
from utils.settings.parse import ARGUMENTS, STAGE2, parse

NAMES = ["stage1", "ce", "los", "los_step", "crt", "lws", "tau_norm", "ncm", "cb", "focal", "ldam", "bsce"]
NAMES += ["la", "lade", "disalign", "marc", "wb", "label_aware", "etf", "los_weighted", "samn", "logreg"]
LEARN_NOTHING = {"stage1", "los_step", "tau_norm", "ncm", "la", "logreg"}
WHOLE_NETWORKS = {"cb", "focal", "ldam", "lade", "etf"}  # what their sources train
VAL = ("--select", "val")
THIN = ("--dataset", "cifar100_lt", "--network", "resnet32")


def plan(argv: list[str]) -> tuple[list[HeadPlan], list[str]]:
    """The heads that a stage-2 command line asks for, and the notes; nothing is read or trained."""
    return plan_heads(resolve(STAGE2, parse(STAGE2, ["--dataset", "digits_lt", *argv])))


def heads(*argv: object) -> list[HeadPlan]:
    """The heads that the user named."""
    return [head for head in plan(list(map(str, argv)))[0] if head.named]


def tried(name: str, plans: list[HeadPlan]) -> list:
    """The values that an option takes among the plans."""
    return list(dict.fromkeys(head.options[name] for head in plans))


# ---- the table


def test_every_method_of_the_comparison_is_in_the_table_once_the_control_rows_first():
    assert sorted(method.name for method in METHODS.values()) == sorted(NAMES)
    assert [method.name for method in chosen_methods("all")] == list(METHODS)
    assert list(METHODS)[:3] == ["stage1", "ce", "los"]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_entry_names_its_source_a_head_that_exists_and_a_loss_where_it_trains(method):
    assert method.what and method.source and method.learns
    assert method.source == "-" if method.name == "stage1" else len(method.source) > 5
    assert method.head in HEADS and method.sampler in ("natural", "balanced")
    assert method.trained == (method.loss in LOSSES) == (method.name not in LEARN_NOTHING)
    assert (method.learns == "nothing") == (not method.trained and method.name != "logreg")
    if not method.trained:
        assert (method.loss, method.epochs, method.lr, method.wd) == (None, 0, None, None)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_setting_of_a_method_is_published_second_hand_or_ours_and_no_other_is_told(method):
    named = [*method.published.split(), *method.second_hand.split()]
    assert len(set(named)) == len(named)
    training = {"lr", "epochs", "wd", "batch", "schedule"} if method.trained else set()
    assert set(named) - {"label_smooth"} <= set(method.settings) == {*method.options, *training}
    assert all(method.kind(name) in ("published", "second-hand", "ours") for name in method.settings)
    if method.name in WHOLE_NETWORKS:
        recipe = METHODS["crt"]
        assert {method.kind(name) for name in training} == {"ours"}, "tuned on no representation"
        for name in ("lr", "per_batch", "epochs", "wd"):
            assert getattr(method, name) == getattr(recipe, name)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_option_of_a_method_reaches_its_head_its_loss_or_its_training(method):
    head = set(inspect.signature(HEADS[method.head]).parameters)
    loss = set(inspect.signature(LOSSES[method.loss]).parameters) if method.trained else set()
    training = {"path", "max_norm"} if method.trained else {"path"} if method.head == "los_step" else set()
    assert set(method.options) <= head | loss | training
    assert set(method.options) <= set(OPTIONS) and set(method.candidates) <= {*method.options, *TRAINING}
    assert set(method.fixed) <= head and not set(method.fixed) & set(method.options)
    given = dict.fromkeys(method.options, 0.5)
    reached = set(method.head_options(given)) | (set(method.loss_options(given)) if method.trained else set())
    assert set(method.options) - reached <= training


def test_every_option_is_an_argument_that_can_be_swept_and_that_some_method_has():
    sweeps = {argument.name for argument in ARGUMENTS if argument.sweep}
    assert {*OPTIONS, *TRAINING} <= sweeps
    assert {name for method in METHODS.values() for name in method.options} == set(OPTIONS)
    for name in TRAINING:
        assert {method.name for method in METHODS.values() if method.takes(name)} == {
            name for name in NAMES if name not in LEARN_NOTHING
        }


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_an_entry_says_of_its_start_and_of_what_it_learns_is_so(method):
    features, labels = training_set()
    options = dict.fromkeys(
        {"tau", "scale", "strength"} & set(inspect.signature(HEADS[method.head]).parameters), 2.0
    )

    def started(seed: int) -> nn.Module:
        fc = nn.Linear(D, K, dtype=torch.float64)
        nn.init.normal_(fc.weight, generator=seeded(seed))
        return build_head(method.head, fc, COUNTS, seeded(6), features, labels, **options | method.fixed)

    one, other = (started(seed).state_dict() for seed in (1, 2))
    from_stage1 = any(not torch.equal(one[name], other[name]) for name in one)
    assert from_stage1 == (method.start == "stage 1")
    learned = sum(p.numel() for p in started(1).parameters() if p.requires_grad)
    if method.trained:
        whole, scales = method.learns.startswith(("classifier", "D x K map")), "K scales" in method.learns
        assert (learned >= K * D) == whole and learned >= K * scales + K * D * whole


# ---- words of the command line


def test_the_list_names_every_method_with_its_source_and_reads_nothing(tmp_path, capsys):
    absent = tmp_path / "absent"
    with pytest.raises(SystemExit) as ended:
        main_stage2.main(["--method", "list", *places(tmp_path), "--pretrained_pth", str(absent)])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    table, sources = text.split("\nsources\n")
    rows, told = table.strip().splitlines()[1:], dict(line.split(maxsplit=1) for line in sources.splitlines())
    assert [line.split()[0] for line in rows] == list(METHODS) == list(told)
    for method, row in zip(METHODS.values(), rows, strict=True):
        assert method.what in row and all(option in row for option in method.options)
        assert told[method.name].startswith(method.source) and method.differs in told[method.name]
    assert told["stage1"] == "-" and all(METHODS[name].differs for name in ("ncm", "ldam", "etf"))
    assert told["marc"] == "Wang et al. 2022; published: lr wd batch rho; ours: epochs schedule"
    kinds = "second-hand: lr epochs wd batch beta max_norm; published: schedule"
    assert told["wb"] == f"Alshammari et al. 2022; {kinds}"
    assert files_below(tmp_path) == []


def test_a_method_that_resembles_none_is_refused_with_all_names():
    message = refusal(plan, "--method", "ce,xyz")
    assert message.startswith("--method has no 'xyz', known: ") and all(name in message for name in NAMES)


def test_methods_run_in_the_order_named_once_each_and_the_first_is_published():
    assert [head.method.name for head in heads("--method", "crt,los,crt,ce")] == ["crt", "los", "ce"]
    assert [lead_method(text) for text in ("crt,los", "ce", "all")] == ["crt", "ce", "los"]
    assert [head.method.name for head in heads("--method", " los, la")] == ["los", "la"]
    assert lead_method(" la, los") == lead_method("la,los", "first", "val") == "la"
    assert lead_method("la,los", None, "val") is lead_method("la", "best", "test") is None
    assert lead_method("la", None, "val") == lead_method("la,los", None, "test") == "la"
    assert [head.method.name for head in heads()] == ["los"]


def test_the_stage_1_classifier_stands_beside_methods_that_do_not_name_it():
    plans = plan(["--method", "ce"])[0]
    assert [(head.method.name, head.named) for head in plans] == [("stage1", False), ("ce", True)]
    plans = plan(["--method", "ce,stage1"])[0]
    assert [(head.method.name, head.named) for head in plans] == [("ce", True), ("stage1", True)]


def test_an_option_that_no_method_of_the_run_has_is_refused_and_those_that_have_it_are_named():
    message = refusal(plan, "--method", "ce,ncm", "--tau", "1,2")
    assert message == "--tau: no method of this run has it, it is for tau_norm, bsce, la"
    message = refusal(plan, "--method", "ncm,la", "--finetune_lr", "0.1")
    assert message.startswith("--finetune_lr: no method of this run has it, it is for ce, los, crt")
    assert "--label_smooth: " in refusal(plan, "--method", "ce", "--label_smooth", "0.9")


def test_an_option_that_some_methods_have_no_use_for_is_noted_in_the_log(tmp_path, digits):
    argv = ("--method", "ncm,la,ce", "--tau", "2", "--finetune_epoch", "1")
    text = run_stage2(tmp_path, "--pretrained_pth", digits.stage1, *argv)
    notes = ["note: ncm, la: no use for --finetune_epoch", "note: ncm, ce: no use for --tau"]
    assert [line for line in text.splitlines() if "no use for" in line] == notes
    assert all(note in (run_folder(tmp_path, "stage2") / "log.txt").read_text() for note in notes)
    assert plan(["--method", "la,bsce", "--tau", "2"])[1] == []


# ---- sweeps, seeds, budgets


def test_sweeps_multiply_and_with_seeds_and_come_in_the_order_of_methods_settings_seeds():
    argv = ("--label_smooth", "0.9,0.8", "--finetune_lr", "0.1,0.01,0.001", "--seeds", "5,3")
    plans = heads("--method", "ce,los", *argv)
    expected = [("ce", None, lr, seed) for lr in (0.1, 0.01, 0.001) for seed in (5, 3)]
    expected += [
        ("los", delta, lr, seed) for delta in (0.9, 0.8) for lr in (0.1, 0.01, 0.001) for seed in (5, 3)
    ]
    found = [(p.method.name, p.options.get("label_smooth"), p.lr, p.seed) for p in plans]
    assert found == expected
    assert len({(p.method.name, p.setting, p.seed) for p in plans}) == len(plans)


def test_sweeps_of_epochs_weight_decay_and_options_of_one_method_leave_the_others_alone():
    argv = ("--finetune_epoch", "1,2", "--finetune_wd", "0,0.1", "--rho", "1,2,3")
    plans = heads("--method", "bsce,marc", *argv)
    assert [p.method.name for p in plans] == ["bsce"] * 4 + ["marc"] * 12
    assert {(p.epochs, p.wd) for p in plans} == {(1, 0), (1, 0.1), (2, 0), (2, 0.1)}
    assert tried("tau", plans[:4]) == [1.0] and tried("rho", plans[4:]) == [1, 2, 3]


def test_a_setting_spells_out_what_tells_the_heads_of_a_method_apart():
    [one] = heads("--method", "wb", "--finetune_epoch", "3", "--finetune_lr", "1e-05")
    expected = "finetune_lr=1e-05 finetune_epoch=3 finetune_wd=0.1 beta=0.9999 max_norm=0.1"
    assert one.setting == expected
    assert [head.setting for head in heads("--method", "ncm,la")] == ["", "tau=1"]
    [path] = heads("--path", "2", "--finetune_epoch", "3")
    assert path.setting == "finetune_epoch=3 label_smooth=0.9 path=2" and path.lr is None


def test_what_is_not_trained_has_one_seed_and_the_rest_all():
    plans = heads("--method", "all", "--seeds", "4,5,6")
    for name in NAMES:
        seeds = [head.seed for head in plans if head.method.name == name]
        assert seeds == ([4] if name in LEARN_NOTHING else [4, 5, 6]), name
    assert plan(["--method", "ce", "--seeds", "4,5"])[0][0].seed == 4


def test_a_budget_of_20_epochs_for_all_yields_to_the_users_own_number():
    def epochs(*argv: str) -> dict[str, int]:
        plans = heads("--method", "all", *argv)
        return {head.method.name: head.epochs for head in plans if head.method.trained}

    source = epochs()
    published = {"crt": 10, "lws": 5, "disalign": 10, "wb": 10, "label_aware": 10, "los": 20, "ce": 20}
    assert published.items() <= source.items()
    assert set(epochs("--budget", "equal").values()) == {20} != set(source.values())
    assert epochs("--budget", "source") == source
    for budget in ("equal", "source"):
        assert set(epochs("--budget", budget, "--finetune_epoch", "3").values()) == {3}


def test_every_learning_rate_that_the_user_leaves_open_scales_with_the_batch_size():
    usual, double = (heads("--method", "all", "--batch_size", size) for size in (64, 128))
    for one, other in zip(usual, double, strict=True):
        if one.method.trained:
            assert other.lr == pytest.approx(2 * one.lr), one.method.name
    rates = {head.method.name: head.lr for head in usual}
    assert rates["disalign"] == pytest.approx(0.1 / 4) and rates["marc"] == pytest.approx(0.05 / 8)
    assert rates["label_aware"] == pytest.approx(0.1 / 2) and rates["bsce"] == pytest.approx(0.1 / 8)
    assert rates["crt"] == rates["lws"] == pytest.approx(0.2 * 64 / 512)
    assert rates["los"] == rates["ce"] == 1e-3
    assert {p.lr for p in heads("--method", "crt,ce", "--batch_size", 128, "--finetune_lr", 0.7)} == {0.7}


def test_learning_rates_that_are_equal_to_ten_digits_are_two_settings_and_others_are_written_as_ever():
    plans = heads("--method", "ce,crt", "--finetune_lr", "0.1,0.10000000000001,0.2", "--seeds", "0,1")
    settings = [plan.setting.split()[0] for plan in plans if plan.method.name == "ce"]
    assert settings[::2] == settings[1::2] and len({*settings}) == 3, "one setting a rate, two seeds each"
    assert [float(words.partition("=")[2]) for words in settings[::2]] == [0.1, 0.10000000000001, 0.2]
    assert settings[-1] == "finetune_lr=0.2"
    assert len({tuple(plan.key.values()) for plan in plans}) == len(plans)


def test_weight_decay_is_the_methods_own_or_the_users():
    decay = {head.method.name: head.wd for head in heads("--method", "los,wb,crt")}
    assert decay == {"los": 0, "wb": 0.1, "crt": 5e-4}
    assert {head.wd for head in heads("--method", "los,wb", "--finetune_wd", "0.02")} == {0.02}


def test_a_closed_step_takes_a_path_beside_the_learning_rate_of_another_method():
    step, crt = heads("--method", "los_step,crt", "--path", "3", "--finetune_lr", "0.1")
    assert step.options["path"] == 3 and crt.lr == 0.1


# ---- whose settings


def rate(*words: str) -> tuple:
    """Learning rate and path of LOS under a command line, and where the rate is from."""
    [los] = [head for head in heads(*words) if head.method.name == "los"]
    return los.lr, los.options.get("path"), los.kinds.get("lr", los.kinds.get("path"))


def test_los_runs_as_published_among_others_and_alone_with_the_preset_of_its_network():
    assert rate(*THIN, "--method", "los,ce") == rate(*THIN, "--method", "all") == (5e-4, None, "published")
    assert rate(*THIN, "--method", "los", "--budget", "source") == (5e-4, None, "published")
    assert rate(*THIN) == rate(*THIN, "--method", "los,ce", "--budget", "preset") == (1e-4, None, "ours")
    assert rate("--dataset", "cifar100_lt") == (5e-4, None, "published")
    assert rate("--method", "los,ce") == (1e-3, None, "ours"), "no published recipe for the digits"
    assert rate("--dataset", "imagenet_lt", "--method", "los,ce")[1:] == (5.0, "ours")
    assert rate(*THIN, "--method", "los,ce", "--finetune_lr", "0.1") == (0.1, None, "given")


@pytest.mark.parametrize(("ratio", "lr"), [(500, 1e-4), (50, 5e-5), (10, 3e-5)])
def test_the_preset_of_a_thin_network_goes_by_the_imbalance_ratio(ratio, lr):
    assert rate(*THIN, "--imb_ratio", ratio) == (lr, None, "ours")
    assert rate(*THIN, "--imb_ratio", ratio, "--budget", "source") == (5e-4, None, "published")


@pytest.mark.parametrize(
    ("ratio", "smoothing", "epochs", "kind"),
    [(10, (0.2, 0.0), 52, "published"), (60, (0.3, 0.0), 81, "ours"), (500, (0.4, 0.1), 94, "ours")],
)
def test_settings_that_a_source_has_by_ratio_are_those_of_the_nearest(ratio, smoothing, epochs, kind):
    aware, bsce = heads(*THIN, "--method", "label_aware,bsce", "--imb_ratio", ratio)
    assert (aware.options["eps_head"], aware.options["eps_tail"]) == smoothing and bsce.epochs == epochs
    assert aware.kinds["eps_head"] == bsce.kinds["epochs"] == kind
    [other] = heads("--dataset", "imagenet_lt", "--method", "label_aware")
    assert (other.options["eps_head"], other.options["eps_tail"]) == (0.4, 0.1)
    assert other.kinds["eps_head"] == "ours" and other.kinds["lr"] == "published"


# ---- candidates


def test_every_method_that_trains_is_tried_with_as_many_settings_on_one_range_of_moves():
    plans = heads("--method", "all", *VAL)
    for name, method in METHODS.items():
        own = [head for head in plans if head.method is method]
        if not method.trained:
            assert len(own) == max(map(len, method.candidates.values()), default=1), name
            continue
        assert len(own) == len({head.setting for head in own}) == SETTINGS, name
        moves = tried("move", own)
        first, last = MOVES[method.start]
        assert (moves[0], moves[-1]) == (10**first, 10**last) and moves == sorted(moves), name
        assert {head.lr for head in own} == {None} and own[0].kinds["lr"] == "chosen"
        for option, values in method.candidates.items():
            source = method.wd if option in TRAINING else method.options[option]
            assert source is None or source in values, "the source's value is one of them"
    for select in ("last", "test"):
        assert len(heads("--method", "all", "--select", select)) == len(METHODS)


def test_methods_without_training_are_tried_over_all_of_their_range():
    plans = heads("--method", "la,tau_norm,los_step", *VAL)
    assert tried("tau", plans[:SETTINGS]) == list(TAUS) and tried("path", plans[-SETTINGS:]) == list(PATHS)


def test_an_option_that_the_user_gives_has_no_candidates():
    assert tried("tau", heads("--method", "la", "--tau", "0.7", *VAL)) == [0.7]
    assert tried("tau", heads("--method", "la", "--tau", "0.7,3", *VAL)) == [0.7, 3]
    assert {p.lr for p in heads("--method", "ce,crt", "--finetune_lr", "0.3", *VAL)} == {0.3}
    plans = heads("--method", "los", "--label_smooth", "0.7", *VAL)
    assert tried("label_smooth", plans) == [0.7] and len(tried("move", plans)) == len(plans) == SETTINGS
    assert len(heads("--method", "los_step", "--path", "3", *VAL)) == 1
    plans = heads("--method", "los", "--path", "3", "--label_smooth", "0.7", *VAL)
    assert [(p.options["path"], p.lr) for p in plans] == [(3, None)]
    assert len(heads("--method", "crt,los", "--path", "3", "--label_smooth", "0.7", *VAL)) == SETTINGS + 1


def test_a_list_that_nobody_reads_to_its_end_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-u", "main_stage2.py", "--method", "list"]
    done = subprocess.run(words, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# ---- a method of the user's own

OWN = """
from utils.settings.methods import Method
from utils.settings.ranges import ABOVE_ZERO
def build(**changes):
    words = {"loss": "ce", "epochs": 2, "lr": 0.01}
    return Method(**{"name": "mine", "what": "-", "source": "-"} | words | changes)
def fails(): raise ValueError("not today")
def other(): return 3
def taken(): return build(name="los")
def blank(): return build(name="my method")
def undeclared(): return build(options={"margin": 1.0})
def out_of_range(): return build(options={"margin": 0.0}, ranges={"margin": ABOVE_ZERO})
def headless(): return build(head="liner")
def lossless(): return build(loss="cross_entropy")
def margin(): return build(options={"margin": 1.0}, ranges={"margin": ABOVE_ZERO})
def bare():
    from torch import nn
    class Bare(nn.Linear):
        def __init__(self, in_features, num_classes): super().__init__(in_features, num_classes)
        def folded(self): return self.weight, self.bias
    return build(head=Bare)
"""


@pytest.fixture
def own_methods(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_methods_here.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_methods_here", raising=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nothing", "has no nothing"),
        ("fails", "fails: ValueError: not today"),
        ("other", "gives no Method"),
        ("taken", "the name 'los', which is taken"),
        ("blank", "name 'my method', which is taken, or has other"),
        ("undeclared", "an option margin without a range"),
        ("out_of_range", "its margin is 0.0, it must be above 0"),
        ("headless", "there is no head 'liner', known: linear, "),
        ("lossless", "there is no loss 'cross_entropy', known: ce, "),
        ("margin --option margin=0", "--option margin must be above 0, got 0"),
        ("margin --option margin=1,1.0", "--option margin names a value twice: 1,1.0"),
        ("margin --option margin=x", "is not written as name=value"),
        ("margin --option width=1", "declares it, known: margin"),
        ("margin --option tau=1", "declares it, say --tau"),
        ("bare", "a head needs start(fc), see models/heads"),
    ],
)
def test_a_method_of_ones_own_that_is_of_no_use_ends_in_one_line(digits, own_methods, words, said):
    start = ["--dataset", "digits_lt", "--pretrained_pth", digits.stage1]
    assert said in refusal(main_stage2.main, *start, "--method", *f"own_methods_here:{words}".split())


def test_no_file_chooses_a_method_of_the_users_code_to_run(digits, tmp_path, own_methods):
    words = ["--pretrained_pth", digits.stage1, "--seed", "0", "--method", "own_methods_here:margin"]
    run_stage2(tmp_path, *words)
    folder = run_folder(tmp_path, "stage2")
    message = refusal(main_stage2.main, "--resume", folder)
    assert "code of its own that no file may choose to run: say --method yourself" in message
    again = call(main_stage2.main, "--resume", folder, *words[-2:])
    assert last_line(again).startswith("test overall=")
