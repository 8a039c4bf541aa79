"""A trained classifier from Python: images or features as they come, to logits, probabilities and names.

    from utils.export import load_classifier

    model = load_classifier("checkpoints/cifar100_lt/IR=100/resnet34_stage2.pth")
    model.predict(["cat.jpg", "dog.jpg"])

Shapes: N images of H x W pixels, S pixels of a side that the network sees, D feature, K classes, V views of
an image (with its mirror image 2).
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datasets.images.decode import read_image
from datasets.images.in_memory import Normalise
from datasets.images.on_disk import plain_view
from datasets.types import FileViews
from utils.base.errors import SettingError, UserError, reason
from utils.engine.device import LAYOUT, pick_device
from utils.engine.scoring import CPU_ROWS, EVAL_BATCH
from utils.features.logits import SCORE_ROWS
from utils.features.source import read_asked
from utils.metrics.accuracy import predictions
from utils.packs.pack import read_pack
from utils.run import checkpoint
from utils.run.facts import class_names
from utils.run.network import network_for_files
from utils.settings.checks import check_against, check_known
from utils.settings.config import resolve
from utils.settings.table import EVALUATE, FIXED_BY_CHECKPOINT, ON_DISK

# arguments of evaluate that say how a file is read
WORDS = {*FIXED_BY_CHECKPOINT, *ON_DISK, "no_tta", "head", "features"}
Input = str | Path | Image.Image | Sequence[str | Path | Image.Image] | Tensor | np.ndarray


class Classifier(nn.Module):
    """`network` with its head and `class_names` [K]; called with uint8 [N, 3, S, S] it gives logits [N, K].

    `views` say how an image becomes such pixels; None: the network is a classifier of features [N, D]. With
    `mirror` the logits are the mean of those of the image and of its mirror image. `notes` say what of a file
    was taken.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: list[str],
        views: FileViews | None,
        mirror: bool,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.notes = tuple(notes)
        self.network, self.class_names, self.views, self.mirror = network, class_names, views, mirror
        tensors = chain(network.parameters(), network.buffers())  # a head may have no parameters
        self.device = next(tensors, torch.empty(0)).device
        if views is not None:
            self._normalise = Normalise(views.mean, views.std, views.size, self.device)

    def forward(self, images: Tensor) -> Tensor:
        return self.seen(images, self.network if self.views else self.network.fc).mean(dim=0)

    def seen(self, images: Tensor, forward: nn.Module) -> Tensor:
        """What `forward` gives of the views of uint8 [N, 3, S, S], or of features [N, D]: [V, N, ...]."""
        if self.views is None:
            return forward(images)[None]
        inputs = self._normalise(images.permute(0, 2, 3, 1).contiguous())
        inputs = torch.cat([inputs, inputs.flip(-1)]) if self.mirror else inputs
        return forward(inputs).unflatten(0, (1 + self.mirror, -1))

    @torch.inference_mode()
    def logits(self, images: Input) -> Tensor:
        """Logits [N, K] of paths, PIL images or uint8 [N, 3, H, W] of any size; of features [N, D].

        Raises UserError: they are something else, or a file is no image.
        """
        parts = [self(part.to(self.device)) for part in self._parts(images)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.class_names))

    def predict_proba(self, images: Input) -> Tensor:
        """Softmax probabilities float64 [N, K] of what `logits` takes."""
        return self.logits(images).double().softmax(dim=1)

    def predict(self, images: Input) -> list[str]:
        """The name of the first class of each; empty where the logits are not finite."""
        return [self.class_names[k] if k >= 0 else "" for k in predictions(self.logits(images)).tolist()]

    def _parts(self, images: Input) -> Iterator[Tensor]:
        """What `forward` takes, as many at a time as in evaluate: the number may decide the last bits."""
        if self.views is None:
            yield from self._features(images).split(SCORE_ROWS)
            return
        images = [images] if isinstance(images, str | Path | Image.Image) else images
        rows = CPU_ROWS // (1 + self.mirror) if self.device.type == "cpu" else EVAL_BATCH
        for start in range(0, len(images), rows):
            yield torch.stack([self._view(image) for image in images[start : start + rows]])

    def _features(self, rows: Tensor | np.ndarray) -> Tensor:
        """float32 [N, D]."""
        width = self.network.fc.weight.shape[1]
        try:
            features = torch.as_tensor(rows, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise SettingError(f"features must be numbers [N, {width}]: {reason(error)}") from error
        if features.ndim != 2 or features.shape[1] != width:
            raise SettingError(f"features must be [N, {width}], got {list(features.shape)}")
        return features

    def _view(self, image: str | Path | Image.Image | Tensor | np.ndarray) -> Tensor:
        name = str(image) if isinstance(image, str | Path) else "an image"
        if isinstance(image, Image.Image):
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        elif isinstance(image, str | Path):
            pixels = read_image(name)
        else:
            try:
                pixels = torch.as_tensor(np.asarray(image))
            except (TypeError, ValueError) as error:
                raise SettingError(f"{name} cannot be read: {reason(error)}") from error
        if pixels.ndim != 3 or len(pixels) != 3 or pixels.dtype != torch.uint8:
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise SettingError(f"an image must be a path, a PIL image or uint8 [3, H, W], got {found}")
        return plain_view(pixels, self.views, name)


def load_classifier(path: str | Path, device: str = "cpu", **words: object) -> Classifier:
    """The classifier in a checkpoint of either stage, in eval mode on `device`, with the head that it holds.

    `words` are those of WORDS: network="my_nets:build" for a network of your own, head="la" for a head
    of a run's last.pth (beside features="pack.safetensors" where the run had a pack), num_class=100 for
    foreign weights, no_tta=True for images without their mirror images. A file that stage 2 left on a pack
    has no backbone: its classifier takes features.

    Raises UserError: the file is missing, damaged or of another network, or a word has no meaning.
    """
    for name in words.keys() - WORDS:
        raise UserError(f"{name} is no word of a classifier, known: {', '.join(sorted(WORDS))}")
    given = {"pretrained_pth": Path(path), "device": device} | words
    pack = read_pack(given.pop("features")) if "features" in given else None
    file = read_asked(given, given["pretrained_pth"], pack)
    needed = file.facts.get("features_digest") if "head" in given else None
    if needed != (pack and pack.digest):
        raise UserError(f"{file.path}: beside head, and only there, features names the pack of its run")
    if "features_digest" in file.facts:
        for name in given.keys() & {*ON_DISK, "no_tta"}:
            raise UserError(f"{name} has no use: {file.path} is a classifier of features")
        check_against(file.known, given)
        weight = file.facts.get("head_state", {}).get("weight", file.state.get("fc.weight"))
        if weight is None or weight.ndim != 2:
            raise UserError(f"{file.path} holds no classifier of features")
        network = nn.ModuleDict({"fc": nn.Linear(weight.shape[1], len(weight))})
        checkpoint.load_weights(network, file, "classifier of features")
        views, names, mirror = None, class_names(file.facts, len(weight)), False
    else:
        check_known(file.path, file.known, given)
        config = resolve(EVALUATE, given | {"predict": Path()}, file.known)
        network, views, names = network_for_files(config, file)
        mirror = views.mirror_test and not config.no_tta
    checkpoint.load_head(network, file)
    network.to(pick_device(device), memory_format=LAYOUT).requires_grad_(False)
    return Classifier(network, names, views, mirror, file.notes).eval()
