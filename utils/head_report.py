"""What stage 2 prints and writes about its heads: plans, epochs, tables, pictures, the published head."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from datasets import LongTailedData
from losses import logit_gap
from utils import checkpoint, comparison, report
from utils.checkpoint import Checkpoint
from utils.config import Config
from utils.logger import Run
from utils.methods import lead_method
from utils.metrics import result_line
from utils.packs import Pack
from utils.plan import HeadPlan
from utils.retraining import HeadRun, Outcome

# heads whose state is that of an nn.Linear
_LINEAR = ("linear", "los_step")


def announce(run: Run, config: Config, plans: Sequence[HeadPlan], notes: Sequence[str]) -> None:
    """Which heads there are, and what of the configuration has no use for them."""
    named = [plan for plan in plans if plan.named]
    methods = list(dict.fromkeys(plan.method.name for plan in named))
    run.log(f"{len(named)} head(s) over one representation: {', '.join(methods)}; budget: {config.budget}")
    if "los" in methods:
        for delta in dict.fromkeys(p.options["label_smooth"] for p in named if p.method.name == "los"):
            gap = logit_gap(delta, config.num_class)
            run.log(f"label over-smoothing: δ = {delta:g}, logit gap {gap:.3g} at its optimum")
    if config.bn_mode == "train":
        run.log("note: --bn_mode train: batch-norm statistics drift during stage 2, as in the public code")
    for note in notes:
        run.log(f"note: {note}")


def source_facts(source: Checkpoint | Pack) -> dict:
    """What a stage-2 checkpoint says of its stage 1, and of the pack that it was trained on."""
    if isinstance(source, Pack):
        return {"stage1_digest": source.facts["stage1_digest"], "features_digest": source.digest}
    return {"stage1_digest": source.digest, "stage1_selected_on": source.facts.get("selected_on")}


def head_content(model: nn.Module, run: HeadRun) -> dict:
    """A head as a checkpoint holds it: a linear one as the network's own last layer, others beside it."""
    state, method = run.head.state_dict(), run.plan.method
    if method.head in _LINEAR:
        last = {f"fc.{name}": value for name, value in state.items()}
        content = {"head": {"kind": "linear"}, "model": model.state_dict() | last}
    else:
        options = method.head_options(run.plan.options)
        content = {"head": {"kind": method.head, "options": options}, "head_state": dict(state)}
        content["model"] = model.state_dict()
    setting = {"method": method.name, "setting": run.plan.setting, "lr": run.lr, "seed": run.plan.seed}
    return content | setting | {"epoch": run.progress.epoch, "progress": run.progress.as_dict()}


class Watcher:
    """Tells how far the heads are; keeps metrics.csv, and the lead head in last.pth and best.pth."""

    def __init__(self, run: Run, heads: list[HeadRun], facts: dict, model: nn.Module, lead: str) -> None:
        self.run, self.heads, self.facts, self.model = run, heads, facts, model
        self.lead = next(head for head in heads if head.plan.method.name == lead)
        self.epochs = max([1, *(head.plan.epochs for head in heads)])
        self.started, self.told = time.monotonic(), set()
        by_path = [h for h in heads if h.plan.method.trained and h.plan.options.get("path") and not h.failed]
        for name, path, lr in dict.fromkeys(
            (h.plan.method.name, h.plan.options["path"], h.lr) for h in by_path
        ):
            run.log(f"{name}, path {path:g}: learning rate {lr:.3g}, from the features' norms")

    def after_epoch(self, epoch: int) -> None:
        """Write and tell what `epoch` epochs have brought."""
        self.run.write_rows("metrics.csv", comparison.head_rows(self.heads))
        for head in self.heads:
            if head.failed and head not in self.told:
                self.told.add(head)
                self.run.log(f"warning: {head.plan.method.name} ({head.plan.setting}) ended: {head.failure}")
        if not self.lead.failed and self.lead.progress.epoch == epoch:
            content = self.facts | head_content(self.model, self.lead)
            names = ["best"] if self.lead.progress.best_epoch == epoch else []
            for name in [*names, "last"]:
                checkpoint.save(self.run.folder / f"{name}.pth", content)
        seconds_left = (time.monotonic() - self.started) / epoch * (self.epochs - epoch)
        trained = [head for head in self.heads if head.plan.epochs >= epoch and not head.failed]
        if len(trained) == 1:
            self.run.log(report.epoch_line(trained[0].progress.rows[-1], self.epochs, seconds_left))
        elif trained:
            self.run.log(
                f"epoch {epoch}/{self.epochs}, {len(trained)} heads training, {report.eta(seconds_left)}"
            )


def publish(
    run: Run,
    config: Config,
    path: Path,
    facts: dict,
    model: nn.Module,
    data: LongTailedData,
    outcomes: Sequence[Outcome],
    heads: Sequence[HeadRun],
) -> None:
    """Write the tables and pictures, leave the lead head where evaluate looks, print a result line a head."""
    _write_tables(run, config, data, outcomes, heads)
    shown = [one for one in outcomes if one.run.plan.named]
    lead_name = lead_method(config.method)
    lead = next((one for one in shown if one.run.plan.method.name == lead_name), shown[0])
    content = facts | head_content(model, lead.run) | {"epoch": lead.run.chosen_epoch}
    where = report.publish(run, path, content, lead.figures, config.select)
    where |= {"method": lead.run.plan.method.name, "setting": lead.run.plan.setting, "lr": lead.run.lr}
    plans = [one.run.plan for one in shown]
    labels = {id(one): comparison.label_of(one.run.plan, plans) if len(shown) > 1 else "" for one in shown}
    for one in shown:
        if one is not lead:
            run.result(result_line(one.figures, config.select, labels[id(one)]))
    report.finish(run, lead.figures, config.select, where, labels[id(lead)])


def _write_tables(
    run: Run, config: Config, data: LongTailedData, outcomes: Sequence[Outcome], heads: Sequence[HeadRun]
) -> None:
    facts = {"budget": config.budget, "selected_on": config.select}
    failed = [head for head in heads if head.failed]
    targets = outcomes[0].run.frozen.labels["test"].cpu()
    rows = comparison.table_rows(outcomes, failed, targets, facts)
    caption = comparison.caption(facts, outcomes, len(targets))
    run.write_rows("table.csv", rows)
    run.write_text("table.md", f"{comparison.markdown(rows)}\n\n{caption}\n")
    run.write_rows("per_class.csv", comparison.per_class_rows(outcomes, data))
    if config.select != "last":
        run.write_rows("search.csv", comparison.search_rows(heads, [one.run for one in outcomes]))
    run.log(f"\n{comparison.aligned(rows)}\n{caption}\n")
    if len([one for one in outcomes if one.run.plan.named]) > 1:
        from utils.plots import draw  # here: a single head needs no matplotlib

        run.log(f"table and {len(draw(run.folder))} pictures in {run.folder}")
    else:
        run.log(f"pictures: python -m utils.plots {run.folder}")
