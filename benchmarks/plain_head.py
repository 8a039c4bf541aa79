"""One classifier over the cached features of a pack, as one writes it for one experiment: TensorDataset,
DataLoader, nn.Linear, SGD with a cosine, the test set scored once at the end.

    python -m benchmarks.plain_head --features PACK --method ce [--epochs 20]

The opponent of `main_stage2.py --method all`. Ends with a line `accuracy=38.62`, in percent.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import baselines
from losses import LabelOverSmooth

MOMENTUM = 0.9


def train(fc: nn.Linear, arrays: dict[str, Tensor], loss_fn: nn.Module, given: argparse.Namespace) -> None:
    """All epochs."""
    dataset = TensorDataset(arrays["train"][0].float(), arrays["train_labels"].long())
    loader = DataLoader(dataset, batch_size=given.batch_size, shuffle=True)
    optimizer = torch.optim.SGD(fc.parameters(), given.lr, MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.epochs)
    for epoch in range(given.epochs):
        loss, accuracy = baselines.train(fc, loader, loss_fn, optimizer)
        schedule.step()
        print(f"epoch {epoch + 1}: loss {loss:.4f}, training accuracy {100 * accuracy:.2f}")


@torch.no_grad()
def score(fc: nn.Linear, views: Tensor, labels: Tensor) -> float:
    """Accuracy in percent of the logits averaged over the views [V, N, D]."""
    logits = fc(views.float()).mean(dim=0)
    return 100 * (logits.argmax(dim=1) == labels).float().mean().item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--features", type=Path, required=True, help="the pack")
    parser.add_argument("--method", choices=("stage1", "ce", "los"), default="ce", help="stage1: score only")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--label_smooth", type=float, default=0.98)
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's own")
    given = parser.parse_args(argv)
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    arrays = load_file(given.features)
    fc = nn.Linear(arrays["fc_weight"].shape[1], arrays["fc_weight"].shape[0])
    fc.load_state_dict({"weight": arrays["fc_weight"], "bias": arrays["fc_bias"]})
    losses = {"ce": nn.CrossEntropyLoss(), "los": LabelOverSmooth(given.label_smooth)}
    if given.method in losses:
        train(fc, arrays, losses[given.method], given)
    print(f"accuracy={score(fc, arrays['test'], arrays['test_labels']):.2f}")


if __name__ == "__main__":
    main()
