"""What stage 2 prints and writes about its heads: plans, epochs, tables, pictures, the published head."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from losses import logit_gap
from utils.base.digest import file_digest
from utils.base.files import read_json
from utils.features.kept import published
from utils.features.source import Source
from utils.heads.head import HeadRun, copied
from utils.heads.outcome import Outcome, best_so_far, lead_of
from utils.heads.plan import HeadPlan
from utils.metrics.accuracy import PARTS, percent, result_line
from utils.report import summary, table
from utils.report.page import page
from utils.run import checkpoint
from utils.run.folder import Run
from utils.run.saver import Saver
from utils.settings.config import Config

EACH = 20  # of several heads: so many epochs are told one by one, then every tenth
_BELOW = 0.005  # of the balanced accuracy: how far below stage 1 a method is worth a warning


def announce(
    run: Run, config: Config, plans: Sequence[HeadPlan], notes: Sequence[str], num_classes: int
) -> None:
    """Which heads there are, and what of the configuration has no use for them."""
    named = [plan for plan in plans if plan.named]
    methods = list(dict.fromkeys(plan.method.name for plan in named))
    run.log(f"{len(named)} head(s) over one representation: {', '.join(methods)}; budget: {config.budget}")
    if "los" in methods:
        for delta in dict.fromkeys(p.options["label_smooth"] for p in named if p.method.name == "los"):
            gap = logit_gap(delta, num_classes)
            run.log(f"label over-smoothing: δ = {delta:g}, logit gap {gap:.3g} at its optimum")
    if config.bn_mode == "train":
        run.log("note: --bn_mode train: batch-norm statistics drift during stage 2, as in the public code")
    for note in notes:
        run.log(f"note: {note}")


def not_begun(model: nn.Module) -> dict:
    """The content of last.pth before there are heads: a run that ends in its features is gone on with."""
    return {"model": model.state_dict(), "epoch": 0, "heads": []}


def head_content(model: nn.Module, trained: HeadRun, best: bool = False) -> dict:
    """A head as a checkpoint holds it (`kept.published`); `best`: as it was after its best epoch."""
    state = trained.best_state if best else copied(trained.head.state_dict())
    backbone = model.state_dict() | ((trained.best_backbone if best else trained.statistics) or {})
    plan, progress = trained.plan, trained.progress
    content = published(plan.method, plan.options, state, backbone, trained.frozen.scale)
    content |= plan.key | {"lr": trained.lr, "progress": progress.as_dict()}
    return content | {"epoch": progress.best_epoch if best else progress.epoch}


class Watcher:
    """Tells how far the heads are; keeps metrics.csv, last.pth with all heads, best.pth with the best one.

    At the end it writes what there is to say of them, and publishes one.
    """

    def __init__(
        self,
        keeper: Saver,
        heads: list[HeadRun],
        facts: dict,
        model: nn.Module,
        lead: str | None,
        source: Source,
    ) -> None:
        self.source = source
        self.keeper, self.run, self.heads, self.facts, self.model = keeper, keeper.run, heads, facts, model
        self.lead = lead  # None: the method that does best
        self.own = [h for h in heads if h.plan.named and lead in (None, h.plan.method.name)]
        self.epochs = max([1, *(head.plan.epochs for head in heads)])
        self.started, self.told = time.monotonic(), set()
        going_on = [head for head in heads if not head.failed and head.progress.epoch < head.plan.epochs]
        self.first = self.epoch = min((head.progress.epoch for head in going_on), default=self.epochs)
        self.saved, self.best_saved = False, None
        keeper.keeps(self.save, self.where)
        by_path = [h for h in heads if h.plan.method.trained and h.plan.options.get("path") and not h.failed]
        for name, path, lr in dict.fromkeys(
            (h.plan.method.name, h.plan.options["path"], h.lr) for h in by_path
        ):
            self.run.log(f"{name}, path {path:g}: learning rate {lr:.3g}, from the features' norms")

    def where(self) -> str:
        """How far the heads are."""
        under_way = [head for head in self.heads if head.step and not head.failed]
        name = under_way[0].plan.method.name if under_way else None
        step = f"step {under_way[0].step} of {name} in epoch {self.epoch + 1}" if under_way else None
        return step or f"epoch {self.epoch}"

    def save(self) -> None:
        """Write last.pth, and best.pth where the method that is published has a new best epoch."""
        self.source.check_unchanged()
        lead, model = self.own[0], self.model
        partial = any(head.step and not head.failed for head in self.heads)
        content = not_begun(model) if lead.failed else head_content(model, lead)
        content |= {"heads": [head.state() for head in self.heads]}
        content |= {"version": checkpoint.VERSION if partial else checkpoint.WHOLE}
        checkpoint.save(self.run.place("last.pth"), self.facts | content)
        self._save_best()
        self.saved = True

    def _save_best(self) -> None:
        """Of several settings best.pth is of the one that is published if no epoch to come changes it."""
        if any(head.progress.best_epoch is None for head in self.own if not head.failed):
            return
        if left := best_so_far(self.own, self.own[0].select):
            best = lead_of(left, self.lead)
            which = best.plan.key | {"epoch": best.progress.best_epoch}
            if which != self.best_saved:
                content = head_content(self.model, best, best=True)
                checkpoint.save(self.run.place("best.pth"), self.facts | content)
                self.best_saved = which

    def after_epoch(self, epoch: int) -> None:
        """Write and tell what `epoch` epochs have brought."""
        self.epoch, self.saved = epoch, False
        self.run.write_rows("metrics.csv", table.head_rows(self.heads))
        for head in self.heads:
            if head.failed and head not in self.told:
                self.told.add(head)
                self.run.log(f"warning: {head.plan.method.name} ({head.plan.setting}) ended: {head.failure}")
        seconds_left = (time.monotonic() - self.started) / max(1, epoch - self.first) * (self.epochs - epoch)
        trained = [head for head in self.heads if head.plan.epochs >= epoch and not head.failed]
        if sum(head.plan.method.trained for head in self.heads) == len(trained) == 1:
            self.run.log(summary.epoch_line(trained[0].progress.rows[-1], self.epochs, seconds_left))
        elif trained and (epoch <= EACH or epoch % 10 == 0 or epoch == self.epochs):
            heads = f"{len(trained)} head(s) training"
            self.run.log(f"epoch {epoch}/{self.epochs}, {heads}, {summary.eta(seconds_left)}")
        self.keeper.after_epoch(self.saved)

    def end(self) -> None:
        """The last epoch is in the files too, and an older version's metrics.csv is written anew."""
        self.run.write_rows("metrics.csv", table.head_rows(self.heads))
        if not self.saved:
            self.save()

    def publish(self, path: Path, facts: dict, outcomes: Sequence[Outcome]) -> None:
        """Write the tables and pictures, leave the head of `lead_of` where evaluate looks.

        Print a result line a head.
        """
        run, select, judged = self.run, self.source.config.select, self.source.data.judged
        chosen = lead_of([one.head for one in outcomes], self.lead)
        lead = next(one for one in outcomes if one.head is chosen)
        self._write_tables(outcomes, lead)
        shown = [one for one in outcomes if one.head.plan.named]
        content = facts | head_content(self.model, lead.head) | {"epoch": lead.head.chosen_epoch}
        where = summary.publish(run, path, content, lead.figures, select)
        where |= {"method": lead.head.plan.method.name, "setting": lead.head.plan.setting, "lr": lead.head.lr}
        where |= {name: facts[name] for name in ("stage1_digest", "train_digest")}
        where |= {"table_digest": file_digest(run.folder / "table.csv")}
        plans = [one.head.plan for one in shown]
        labels = {id(one): table.label_of(one.head.plan, plans) if len(shown) > 1 else "" for one in shown}
        _warn_of_low(run, outcomes, PARTS[judged])
        for one in shown:
            if one is not lead:
                summary.warn_of_lost(run, one.figures, labels[id(one)])
                run.result(result_line(one.figures, select, labels[id(one)], judged))
        summary.finish(run, lead.figures, select, where, labels[id(lead)], judged)

    def _write_tables(self, outcomes: Sequence[Outcome], lead: Outcome) -> None:
        run, config, data = self.run, self.source.config, self.source.data
        facts = {"budget": config.budget, "selected_on": config.select}
        facts |= {"judged": data.judged} if data.test is None else {}
        targets = outcomes[0].head.frozen.labels[data.judged].cpu()
        rows = table.table_rows(outcomes, self.heads, targets, facts)
        run.write_rows("table.csv", rows)
        cells, caption = table.cells(rows), table.caption(rows, outcomes)
        run.write_text("table.md", f"{table.markdown_lines(cells)}\n\n{caption}\n")
        run.write_rows("per_class.csv", table.per_class_rows(outcomes, data))
        confused = table.confusion_rows(lead.head.plan.key, lead.predicted, data, targets)
        run.write_rows("confusion.csv", confused)
        if config.select != "last":
            run.write_rows("search.csv", table.search_rows(self.heads, [one.head for one in outcomes]))
        run.log("", *table.aligned(rows), *table.brief_caption(rows), "")
        if len([one for one in outcomes if one.head.plan.named]) > 1:
            from utils.plots.drawing import draw  # here: a single head needs no matplotlib

            pictures, settings = draw(run.folder), read_json(run.folder / "config.json")
            title = f"{len({row['method'] for row in rows})} classifiers on {data.name}"
            run.write_text("report.html", page(title, cells, caption, pictures, settings))
            run.log(f"table and {len(pictures)} pictures in {run.folder}, all on one page: report.html")
        else:
            table.log_classes(run, data, lead.figures, confused)


def _warn_of_low(run: Run, outcomes: Sequence[Outcome], part: str) -> None:
    """Name the methods that lie half a point below stage 1 and nearest class mean, if those are there.

    By the mean over classes: a test part that was taken out of a long-tailed set is long-tailed too.
    """
    found: dict[str, float] = {}
    for one in outcomes:
        found.setdefault(one.head.plan.method.name, one.figures["balanced"])
    floor = {name: found[name] for name in ("stage1", "ncm") if name in found}
    least = min(floor.values(), default=0)
    if low := [f"{name} ({percent(value)})" for name, value in found.items() if value < least - _BELOW]:
        below = " and ".join(f"{name} ({percent(value)})" for name, value in floor.items())
        run.warn(f"below {below} in balanced accuracy on {part}: {', '.join(low)}")
