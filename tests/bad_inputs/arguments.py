"""Arguments: wrong types, out of range, unknown, of another script, misspelt, at odds with each other."""

from tests.bad_inputs import FOLDER, PACK, PLOTS, Row
from utils.settings.table import ALL, ARGUMENTS, CHECK, DATA, EVALUATE, STAGE1, STAGE2, Mark

DIGITS = "--dataset digits_lt "
FILES = "--dataset folder --data_dir {pets} "
STAGE1_OF, PETS1_OF = "--pretrained_pth {stage1} ", "--pretrained_pth {pets1} "
TO_NEW = "--dataset digits_lt --to {root}/new --imb_ratio "
WHOLE = "1" + "0" * 30  # no machine counts so far

# what the line says -> values that are out of the range, arguments that have it
BOUNDS = {
    "must be 0 or more, got": (
        "-1",
        "subset_seed warmup_epochs wd mixup finetune_wd seeds tau rho gamma max_margin alpha lam power views "
        "seed gpu",
    ),
    "must be 1 or more, got": ("0", "epochs batch_size accum eval_every finetune_epoch"),
    "must be above 0, got": ("0", "lr finetune_lr logit_gap path scale logreg_c"),
    "must be at least 0 and below 1": ("1 -0.1", "momentum beta eps_head eps_tail label_smooth jitter"),
    "must be between 0 and 1, got": ("-0.1 1.1", "max_norm"),
    "must be above 0 and below 1, got": ("0 1", "val_fraction test_fraction"),
    "must be a number of 1 or more, got": ("0.99", "imb_ratio"),
    "must be 2 or more, got": ("1", "num_class"),
    "must be 0 to 1024": ("-1 1000000", "workers"),
    "must be 8 to 4096": ("7 1000000000", "image_size"),
    "must be 8 to 8192": ("7 1000000000", "resize"),
}
# what else has to be said before an argument means something
FILED = dict.fromkeys(("image_size", "resize", "jitter", "workers", "test_fraction"), FILES)
BEFORE = FILED | {"val_fraction": "--val_source heldout "}
# script, argument, values that are of no use, what the line says
RANGES = [
    (STAGE1, DIGITS + "--imb_ratio", "2000 1e300", r"leaves \d+ of 10 classes without an image"),
    (STAGE1, "num_class", "99", "but cifar100_lt has 100 classes"),
    (STAGE1, "shots", "0,5 -1,20", "must be 1 or more, got"),
    (STAGE1, "shots", "20 100,20 1,2,3", r"takes two limits LOW,HIGH as in 20,100, got"),
    (CHECK, "workers", "-1", "must be 0 to 1024"),
    (STAGE1, DIGITS + "--accum", "3", r"--batch_size 64 must be a multiple of 1 process\(es\) x --accum 3"),
    (STAGE2, "finetune_epoch", "20,20", "names a value twice: 20, 20"),
    (STAGE2, "label_smooth", "1.2", r"must be at least 0 and below 1 \(at 1 every label is 1/K"),
    (STAGE2, "logit_gap", "1e6 1,701", "is beyond all numbers: δ would be 0"),
    (EVALUATE, "cur_stage stage1 --gpu", "-1", "must be 0 or more, got"),
    (STAGE1, DIGITS + "--gpu", "257", r"--device cuda:\d+, but torch .* try --device cpu"),
    (STAGE1, "save_every", "0 -1 1.5 10s m 010", "must be a number of steps, or of minutes as 10m, got"),
]
# script, words, what the line says
ODD = [
    (STAGE1, "stray", "unknown argument stray"),
    (STAGE1, "--EPOCHS 3", r"unknown argument --EPOCHS, did you mean --epochs\?"),
    (STAGE1, DIGITS + "--loss focal --mixup 0.2", "--loss focal takes no mixed labels"),
    (STAGE1, "--wd -1e-4", "argument --wd: expected one argument"),
    (STAGE1, DIGITS + "--pretrained imagenet", "--pretrained: imagenet does not exist"),
    (STAGE1, "--resume newest", "--resume: newest does not exist"),
    (STAGE2, "--pretrained_pth best", "--pretrained_pth: best does not exist"),
    (EVALUATE, "--features digits --cur_stage stage1", "--features: digits (does not exist|cannot be read)"),
    (STAGE1, "--network resnet99", "--network: unknown network 'resnet99'"),
    (STAGE1, "--network=", "--network: unknown network ''"),
    (STAGE1, "--network nets.py:small", "is not written as Python imports it"),
    (STAGE1, FILES + "--network no_such_module:small", "--network: network .* there is no module"),
    (STAGE1, FILES + "--network os:getcwd", "--network: network os:getcwd"),
    (STAGE1, DIGITS + "--device cuda:77", r"--device cuda:77, but torch .* try --device cpu"),
    (STAGE1, DIGITS + "--device gpu", "--device gpu is not a device"),
    (STAGE1, DIGITS + "--device=", "--device .*is not a device"),
    (STAGE1, DIGITS + "--device meta", "--device meta is not supported"),
    (STAGE1, DIGITS + "--device cpu --amp fp16", "--amp fp16 needs a CUDA device"),
    (STAGE1, DIGITS + "--device cpu --cuda_graphs", "--cuda_graphs needs a CUDA device, this run is on cpu"),
    (STAGE1, DIGITS + "--cuda_graphs --accum 2", "--cuda_graphs does not go with --accum 2"),
    (STAGE1, DIGITS + "--cuda_graphs --amp fp16", "--cuda_graphs does not go with --amp fp16"),
    (STAGE1, DIGITS + "--cuda_graphs --compile", "--cuda_graphs does not go with --compile"),
    (STAGE1, DIGITS + "--cuda_graphs --network tests.user_networks:tiny", "does not go with --network"),
    (EVALUATE, DIGITS, "say what to evaluate: --cur_stage stage1"),
    (EVALUATE, DIGITS + "--cur_stage stage2", "no stage2 checkpoint at .*--pretrained_pth"),
    (STAGE2, DIGITS + "--imb_ratio 7", r"IR=7/resnet8_stage1.pth: make it with `python \S*main_stage1.py"),
    (STAGE2, DIGITS + "--ckpt_dir {stage1.parent.parent.parent} --network resnet20", "beside it: resnet8"),
    (STAGE2, STAGE1_OF + "--method lso", r"--method has no 'lso', did you mean lws or los\?"),
    (STAGE2, STAGE1_OF + "--method LOS", r"--method has no 'LOS', did you mean los\?"),
    (STAGE2, STAGE1_OF + "--method=", "--method has no ''"),
    (STAGE2, STAGE1_OF + "--method all,los", "--method all stands alone"),
    (CHECK, DIGITS, "digits_lt is held in memory, its files were checked|--workers"),
]
CONTRADICTIONS = [
    (STAGE1, "--gpu 1 --device cpu", "--gpu 1 contradicts --device cpu"),
    (STAGE1, "--cur_stage stage2", "--cur_stage stage2 contradicts main_stage1.py, which runs stage1"),
    (STAGE2, "--cur_stage stage1", "--cur_stage stage1 contradicts main_stage2.py, which runs stage2"),
    (STAGE1, "--nesterov --momentum 0", "--nesterov needs a --momentum above 0"),
    (STAGE1, "--epochs 5 --warmup_epochs 5", "--warmup_epochs 5 must be below --epochs 5"),
    (
        STAGE1,
        "--val_source unused --val_fraction 0.1",
        "--val_fraction has a meaning with --val_source heldout only",
    ),
    (STAGE1, "--val_source none --select val", "--select val needs validation images"),
    (STAGE2, "--logit_gap 1 --label_smooth 0.9", "--label_smooth and --logit_gap say the same thing"),
    (STAGE2, "--path 3 --finetune_lr 1", "--path and --finetune_lr both set the learning rate"),
    (STAGE1, "--dataset folder --data_dir {pets} --subset_seed 1", "--subset_seed draws what .* no use here"),
    (STAGE1, FILES + "--augment pad_crop --resize 64 --image_size 32", "--resize has no use with"),
    (STAGE1, FILES + "--augment plain --jitter 0.4", "--augment plain has no use for --jitter and --no_flip"),
    (FOLDER, "--from {pets}/train --to {pets}/train/split", "--to .* lies among the images of --from"),
    (STAGE1, DIGITS + "--stem imagenet", "--stem is for resnet10, .*: resnet8 begins in a way of its own"),
    (STAGE1, DIGITS + "--loss cb --accum 2", "--loss cb weighs .*: it takes one process and no --accum"),
    (EVALUATE, PETS1_OF + "--predict {pets} --logits {root}/x.npz", "--logits is for images with labels"),
    (EVALUATE, PETS1_OF + "--predict {pets} --target_prior known", "--target_prior is for images with"),
    (STAGE2, DIGITS + "--seed 1 --seeds 1,2", "--seed and --seeds say the same thing"),
    (STAGE2, "--protocol published --select val", "leave --select val out"),
    (STAGE2, "--protocol published --views 2", "leave --views out"),
    (STAGE2, "--protocol published --features {pack}", "runs the backbone in training mode, and a pack"),
    (STAGE1, DIGITS + "--label_smooth 0.1,0.2", "--label_smooth takes one value in stage 1"),
    (
        STAGE1,
        DIGITS + "--label_smooth 0.1 --loss bsce",
        "--label_smooth is for --loss ce, los and los_weighted, bsce has no",
    ),
    (STAGE2, "--views 2 --bn_mode train", "--bn_mode train recomputes the features"),
    (STAGE2, STAGE1_OF + "--method ce --tau 1", "--tau: no method of this run has it"),
    (STAGE2, STAGE1_OF + "--pack_dtype fp16", "--pack_dtype is for --save_features"),
    (STAGE2, STAGE1_OF + "--save_features {root}/a --bn_mode train", "--save_features needs frozen features"),
    (STAGE2, STAGE1_OF + "--publish best", "--publish best needs what selects: add --select val"),
    (STAGE2, STAGE1_OF + "--target_prior 1,2", r"--target_prior has 2 number\(s\) for 10 classes"),
    (STAGE2, STAGE1_OF + "--target_prior 1,1,1,1,1,1,1,1,1,0", "--target_prior needs numbers above 0"),
    (EVALUATE, STAGE1_OF + "--target_prior 1,1,1,1,1,1,1,1,1,inf", "--target_prior needs numbers above 0"),
    (EVALUATE, STAGE1_OF + "--target_prior unknown", "--target_prior takes `known`, or a number"),
    (STAGE2, STAGE1_OF + "--val_source heldout --select val", "stage1.pth was trained on other images"),
    *(
        (STAGE1, f"{DIGITS}{word}", f"{word.split()[0]} is for images on disk, digits_lt has no use")
        for word in ("--image_size 32", "--allow_partial", "--normalise cifar", "--train_list x")
    ),
    (STAGE1, FILES + "--train_list a.txt", "--train_list goes with --dataset list, not with folder"),
    (STAGE1, FILES + "--split_dir {root}", "--split_dir goes with --dataset .*, not with folder"),
    (STAGE1, FILES + "--allow_partial", "--allow_partial goes with --dataset .*, not with folder"),
    (STAGE1, FILES + "--test_fraction 0.2", "pets has a test/ of its own: leave --test_fraction out"),
    (
        STAGE1,
        FILES + "--network resnet8 --batch_size 16777216",
        r"a step of 16777216 images of 64 x 64 pixels needs about [\d.]+ GB, .* free: --accum \d+ takes",
    ),
    (
        STAGE1,
        "--dataset folder --data_dir {root} --test_fraction 0.2",
        "--out .*/out lies among the images of --data_dir",
    ),
    (STAGE1, FILES + "--tta --no_tta", "--tta and --no_tta contradict each other"),
    (STAGE1, FILES + "--tta --no_flip", "--tta and --no_flip contradict each other"),
    (STAGE1, FILES + "--imb_ratio 50", "--imb_ratio 50 leaves"),
    (STAGE1, "--dataset list --data_dir {lists}", "needs --train_list FILE .*, and --test_list FILE, "),
    (STAGE1, "--dataset imagenet_lt --data_dir {imagenet} --imb_ratio 10", "leave --imb_ratio out"),
    (STAGE1, "--dataset imagenet_lt --data_dir {imagenet}", "not the published .*--allow_partial"),
    (STAGE1, "--dataset folder --data_dir {root}/nowhere", "nowhere has no train/: expected"),
    (STAGE1, "--dataset inaturalist18 --data_dir {root}/nowhere", "nowhere is no folder: --data_dir"),
    (
        STAGE1,
        "--dataset inaturalist18 --data_dir {inat} --split_dir {root}/nowhere",
        "no folder: --split_dir",
    ),
    (STAGE1, "--dataset folder --data_dir {pets} --val_source own --select val", "--val_source heldout"),
    (EVALUATE, STAGE1_OF + "--imb_ratio 7", "with --imb_ratio 50.0, but --imb_ratio 7"),
    (EVALUATE, STAGE1_OF + "--dataset cifar10_lt", "was made with --dataset digits_lt"),
    (EVALUATE, STAGE1_OF + "--subset_seed 3 --stem imagenet", "was made with --stem small"),
    (EVALUATE, PETS1_OF + "--predict {root}/nowhere", "nowhere does not exist"),
    (EVALUATE, PETS1_OF + "--predict {pets1}", "pets.pth is not a folder"),
    (EVALUATE, STAGE1_OF + "--predict {pets}", "--predict reads colour images, digits_lt"),
    (EVALUATE, PETS1_OF + "--data_dir {pets} --imb_ratio 3", "--imb_ratio has no meaning here"),
    (FOLDER, "--dataset digits_lt", "arguments are required: --to"),
    (FOLDER, "--dataset folder --to {root}/new", "argument --dataset: invalid choice: 'folder'"),
    (FOLDER, "--from {pets} --to {root}/new", "has its parts already: --data_dir takes it as it is"),
    (FOLDER, "--from {pets}/train --to {root}/new --imb_ratio 2", "--imb_ratio has no use with --from"),
    (FOLDER, "--dataset digits_lt --to {root}/new --val_fraction 0.3", "--val_fraction has no use with --d"),
    (FOLDER, TO_NEW + "0", "--imb_ratio must be a number of 1 or more"),
    (FOLDER, TO_NEW + "nan", "--imb_ratio must be a number of 1 or more"),
    (FOLDER, TO_NEW + "x", "--imb_ratio: invalid float value"),
    (FOLDER, "--dataset digits_lt --to {root}", "exists already: name a folder to be made"),
    (FOLDER, "--dataset digits_lt --to {stage1}/new", "cannot|Not a directory"),
    (FOLDER, "--dataset digits_lt --tto {root}/new --to {root}/new", "--tto"),
    (PACK, "", "say what to do: pack, see `.*python -m utils.features pack --help`"),
    (PACK, "pack --out {root}/new", "required: --train_x"),
    (PLOTS, "", "required: run_folder"),
    (PLOTS, "{tables} --method los", "--method"),
    (PLOTS, ("{tables}", "--methods", "ce, lso"), r"no figures of 'lso' in .* los\? There are: crt, los,"),
    (PLOTS, "{tables} --methods ,", "--methods|1 to 6 methods"),
    (PLOTS, "{root}/nowhere", r"nowhere/table.csv cannot be read: No such file"),
    (PLOTS, "{stage1}", r"stage1.pth/table.csv cannot be read: Not a directory"),
]
LISTED = "--dataset list --data_dir {lists} --train_list {lists}/train.txt --test_list {lists}/test.txt "
# argument that names a file or folder -> the script, what goes before it
PLACES = {
    "data_dir": (STAGE1, "--dataset folder "),
    "split_dir": (STAGE1, "--dataset imagenet_lt --data_dir {imagenet} "),
    **dict.fromkeys(("train_list", "val_list", "test_list"), (STAGE1, LISTED)),
    **dict.fromkeys(("pretrained", "out", "ckpt_dir", "resume"), (STAGE1, DIGITS)),
    **dict.fromkeys(("pretrained_pth", "features"), (STAGE2, "")),
    "save_features": (STAGE2, STAGE1_OF),
    "predictions": (EVALUATE, STAGE1_OF),
    "predict": (EVALUATE, PETS1_OF),
    "to": (FOLDER, DIGITS),
    "train_x": (PACK, "pack --train_y x --test_x x --test_y x --out {root}/new "),
    "class_names": (PACK, "pack --train_x x --train_y x --test_x x --test_y x --out "),
}
_TYPES = {int: ("ten", "1.5", "0x10", ""), float: ("ten", "1,2x", "")}


def _generated() -> list[Row]:
    """What holds of every argument alike, for the first one of each form: the parser looks at no more."""
    rows, forms = [], set()
    names = {argument.name for argument in ARGUMENTS}
    for argument in ARGUMENTS:
        public = Mark.PUBLIC in argument.marks
        form = (argument.kind, argument.sweep, bool(argument.choices), argument.scripts, public)
        if form in forms:
            continue
        forms.add(form)
        name, script = argument.name, argument.scripts[0]
        value = [] if argument.kind is bool else ["1"]
        noted = ALL if public else ()
        for other in sorted({*DATA} - {*argument.scripts, *noted})[-1:]:
            says = f"--{name} is an argument of .*, {other} has no use for it"
            rows.append(Row(f"{name} of another script, {other}", other, (f"--{name}", *value), says))
        if name[:-1] not in names:
            says = rf"unknown argument --{name[:-1]}, did you mean --\w+\?"
            rows.append(Row(f"{name} misspelt", script, (f"--{name[:-1]}", *value), says))
        if argument.kind is bool:
            says = f"argument --{name}: ignored explicit argument 'yes'"
            rows.append(Row(f"{name} with a value", script, (f"--{name}=yes",), says))
            continue
        says = f"argument --{name}: expected one argument"
        rows.append(Row(f"{name} without a value", script, (f"--{name}",), says))
        if argument.choices:
            says = f"argument --{name}: invalid choice: 'nonsense'"
            rows.append(Row(f"{name} of no choice", script, f"--{name} nonsense", says))
        for bad in _TYPES.get(argument.kind, ()):
            says = f"argument --{name}: invalid {argument.kind.__name__} value: '{bad}'"
            rows.append(Row(f"{name} of another type, {bad!r}", script, (f"--{name}={bad}",), says))
        if argument.kind is int:
            start = FILES if name in ("image_size", "resize", "workers") else ""
            says = rf"--{name} must be .*, got {WHOLE}"
            rows.append(Row(f"{name} beyond all", script, f"{start}--{name} {WHOLE}", says))
    return rows


def _ranges() -> list[tuple[str, str, str, str]]:
    """Those of every number: beyond its bounds, and for one sweep last in it; and no finite number."""
    arguments, found = {argument.name: argument for argument in ARGUMENTS}, list(RANGES)
    for says, (values, names) in BOUNDS.items():
        for argument in map(arguments.get, names.split()):
            words = f"{BEFORE.get(argument.name, '')}--{argument.name}"
            tried = f"{values} 0.5,-1" if argument.name == "tau" else values
            found.append((argument.scripts[0], words, tried, says))
            if argument.kind is float:
                tried = "nan inf -inf 1e400 0.5,inf" if argument.name == "tau" else "nan"
                found.append((argument.scripts[0], words, tried, "must be a finite number, got"))
    return found


def _ranged() -> list[Row]:
    rows = []
    for script, name, values, says in _ranges():
        start, _, last = f"--{name}".removeprefix("--" * name.startswith("--")).rpartition("--")
        for value in values.split():
            words = f"{start}--{last}={value}"
            says_it = says if says.startswith("--") else f"--{last}.*{says}"
            rows.append(Row(f"{script} {words}", script, words, says_it))
    return rows


ROWS = [
    *_generated(),
    *(
        Row(
            f"--{name} with a name beyond 255 bytes",
            script,
            f"{words}--{name} {{root}}/{'ä' * 150}".replace("--out --class_names", "--out"),
            "File name too long",
        )
        for name, (script, words) in PLACES.items()
    ),
    Row("plots of a name beyond 255 bytes", PLOTS, f"{{root}}/{'ä' * 150}", "File name too long"),
    *_ranged(),
    *(Row(f"{script} {words}", script, words, says) for script, words, says in (*ODD, *CONTRADICTIONS)),
]
