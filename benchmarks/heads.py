"""The heads of main_stage2.py as the benchmarks and the studies train them: nobody else here knows how."""

from collections.abc import Callable, Sequence

from utils.base.errors import UserError
from utils.features.frozen import Representation
from utils.heads.epochs import all_epochs, start_heads, train_epoch
from utils.heads.head import HeadRun
from utils.heads.plan import HeadPlan
from utils.settings.config import Config


def trained(
    plans: Sequence[HeadPlan],
    frozen: Representation,
    config: Config,
    scored: Sequence[str] = (),
    after_epoch: Callable[[int, list[HeadRun]], None] = lambda epoch, heads: None,
) -> list[HeadRun]:
    """The heads of these plans after their last epoch; the parts `scored` are scored after each.

    Raises:
        UserError: one of them failed.
    """
    heads = start_heads(plans, frozen, scored, config)
    for epoch in all_epochs(heads):
        train_epoch(heads, epoch, scored)
        after_epoch(epoch + 1, heads)
    for head in heads:
        if head.failed:
            raise UserError(f"{head.plan.method.name} {head.plan.setting}: {head.failure}")
    return heads
