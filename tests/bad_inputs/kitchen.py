"""The sound inputs that the rows start from."""

from pathlib import Path

from models import build_model
from tests.bad_inputs import Kitchen
from tests.file_trees import folder_tree, imagenet_tree, inat_tree, list_tree
from tests.helpers import TrainedDigits, checkpoint_content, run_folder
from tests.test_pack_runs import save_pack
from tests.test_plots import tables, write
from utils.run import checkpoint

CLASSES = ["ant", "bee", "cat"]
SMALL = {"counts": (5, 4, 3), "test_per_class": 2}
SEEN = {"image_size": 32, "augment": "resized_crop", "normalise": "imagenet", "jitter": 0.0}


def furnish(root: Path, digits: TrainedDigits) -> Kitchen:
    """Make everything below `root`, but for the digits' runs, which are there."""
    pets = folder_tree(root / "pets", **SMALL)
    facts = SEEN | {"dataset": "folder", "imb_ratio": None, "num_class": 3}
    facts |= {"class_names": CLASSES, "class_counts": [5, 4, 3]}
    content = checkpoint_content(build_model("resnet8", 3).state_dict(), **facts)
    checkpoint.save(root / "pets.pth", content)
    (root / "tables").mkdir()
    return Kitchen(
        stage1=digits.stage1,
        stage2=digits.stage2,
        run=run_folder(digits.root, "stage1"),
        pack=save_pack(root, digits.stage1),
        pets=pets,
        pets1=root / "pets.pth",
        lists=list_tree(root / "lists", **SMALL),
        inat=inat_tree(root / "inat", **SMALL),
        imagenet=imagenet_tree(root / "imagenet", **SMALL, val_per_class=1),
        tables=write(root / "tables", tables(seeds=1)),
    )
