"""What `python -m utils.features encode` does with JPEG files, against its encoder over ready batches alone.

Both run without gradients and give the same features. The files are crops of scikit-learn's two photographs.
Loader processes start anew every turn; reading weights and listing files, which a command does once, is left
out.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.common import Bench, DiffersError, Findings, alternate, each, row
from models import build_model
from utils.engine.scoring import EVAL_BATCH
from utils.features.encode import EncoderSource
from utils.features.views import unwatched
from utils.settings.config import resolve
from utils.settings.data import open_parts
from utils.settings.table import STAGE2

TARGET, TOLERANCE = 0.95, 1e-5


def write_photographs(folder: Path, count: int) -> None:
    """`count` training and two test images of two classes, 500 x 375 pixels."""
    for part, number in (("train", count), ("test", 2)):
        for i in range(number):
            photograph = Image.fromarray(load_sample_images().images[i % 2])
            left, top = 7 * i % 140, 5 * i % 52
            path = folder / part / str(i % 2) / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph.crop((left, top, left + 500, top + 375)).save(path, quality=90)


def run(bench: Bench, network: str, turns: int) -> Findings:
    """The row of a network; `quick`: four images of 32 pixels."""
    count, size = (4, 32) if bench.quick else (1024, 224)
    with TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        write_photographs(folder / "images", count)
        torch.save(build_model(network, 2, stem="imagenet").state_dict(), folder / "weights.pth")
        words = {"network": network, "stem": "imagenet", "image_size": size, "device": "cpu", "workers": 1}
        words |= {"dataset": "folder", "data_dir": folder / "images", "pack_dtype": "fp32"}
        words |= {"save_features": folder / "pack", "val_source": "none"}
        source = EncoderSource(folder / "weights.pth")
        config = resolve(STAGE2, words, {"views": 0, "seed": 0, "label_smooth": 0.0})
        data, model = source.load(config, torch.device("cpu"))
        ready = [
            inputs
            for part in open_parts(data, torch.device("cpu")).values()
            for inputs, _ in part.batches(EVAL_BATCH)
        ]
        found = {}

        def ours() -> None:
            frozen = source.on_disk(None, 1, unwatched, lambda line: None)
            found["ours"] = torch.cat([frozen.train.plain(), frozen.part("test")[0]]).clone()
            frozen.discard()

        def bare() -> None:
            found["bare"] = torch.cat([model.forward_features(inputs) for inputs in ready])

        seconds = alternate({"ours": ours, "bare": bare}, turns)
    difference = float((found["ours"] - found["bare"]).abs().max() / found["bare"].abs().max())
    if difference > TOLERANCE:
        raise DiffersError(f"the features differ by {difference:.1e}")
    what = f"encode JPEG 500x375 at {size}, {network}"
    numbers = [each(seconds[side], count + 2) for side in ("ours", "bare")]
    return Findings([row(what, "bare pass over ready batches", "images/s", *numbers, TARGET)], [])
