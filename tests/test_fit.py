"""The epochs of a run: the best one, complete rows, resuming, and what is said when training diverges."""

import copy
import json

import pytest

from utils.engine.loop import DivergedError, Progress, cosine_lr, fit, score_column, timed


class Epochs:
    """Runs `fit` on given scores and keeps what it did."""

    def __init__(
        self,
        scores: list[float],
        progress: Progress | None = None,
        stop: int | None = None,
        eval_every: int = 1,
    ) -> None:
        self.eval_every, self.evaluated = eval_every, []
        self.progress, self.saved, self.trained, self.left = progress or Progress(), [], [], []
        self.scores, self.epochs, self.stop = scores, len(scores), stop

    def run(self, scored_on: str | None = "val_balanced") -> "Epochs":
        fit(
            self.progress,
            epochs=self.epochs,
            schedule=lambda epoch: cosine_lr(1.0, epoch, self.epochs),
            train=self.train,
            evaluate=self.evaluate,
            scored_on=scored_on,
            save=lambda name: self.saved.append((name, copy.deepcopy(self.progress))),
            log=lambda *figures: self.left.append(figures[-1]),
            eval_every=self.eval_every,
            columns=["val_balanced"],
        )
        return self

    def evaluate(self) -> dict:
        self.evaluated.append(self.trained[-1] + 1)
        return {"val_balanced": self.scores[self.trained[-1]]}

    def train(self, epoch: int, lr: float) -> dict:
        if epoch == self.stop:
            raise DivergedError("the loss is nan at step 4")
        self.trained.append(epoch)
        return {"train_loss": 10.0 - epoch}

    def best(self) -> tuple[int | None, float | None]:
        return self.progress.best_epoch, self.progress.best_score


def test_a_run_keeps_the_best_epoch_and_the_earlier_of_equals():
    run = Epochs([0.2, 0.5, 0.4, 0.5, 0.1]).run()
    assert run.best() == (2, 0.5)
    assert [(name, kept.epoch) for name, kept in run.saved] == [
        *[("best", 1), ("last", 1), ("best", 2), ("last", 2)],
        *[("last", 3), ("last", 4), ("last", 5)],
    ]


def test_a_first_epoch_with_a_score_of_zero_is_the_best_so_far():
    assert Epochs([0.0, 0.0]).run().best() == (1, 0.0)


def test_a_run_without_a_score_keeps_no_best_epoch():
    run = Epochs([0.2, 0.5]).run(scored_on=None)
    assert run.best() == (None, None) and {name for name, _ in run.saved} == {"last"}


def test_rows_are_complete_and_in_order_and_each_save_holds_all_rows_so_far():
    run = Epochs([0.2, 0.5, 0.4]).run()
    assert run.progress.rows == [
        {
            "epoch": e + 1,
            "lr": cosine_lr(1.0, e, 3),
            "train_loss": 10.0 - e,
            "val_balanced": (0.2, 0.5, 0.4)[e],
        }
        for e in range(3)
    ]
    assert all(len(kept.rows) == kept.epoch for _, kept in run.saved)
    assert run.saved[-1][1] == run.progress
    assert run.left[-1] == 0 and len(run.left) == 3 and min(run.left) >= 0


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_run_resumes_from_its_progress_as_if_unbroken(cut):
    scores = [0.2, 0.5, 0.4, 0.6, 0.6]
    unbroken = Epochs(scores).run()
    kept = next(kept for name, kept in unbroken.saved if name == "last" and kept.epoch == cut)
    resumed = Epochs(scores, Progress(**json.loads(json.dumps(kept.as_dict())))).run()
    assert resumed.trained == list(range(cut, 5))
    assert resumed.progress == unbroken.progress and resumed.best() == (4, 0.6)


@pytest.mark.parametrize(
    ("every", "evaluated", "best"), [(1, [1, 2, 3, 4, 5], 2), (2, [2, 4, 5], 2), (3, [3, 5], 3), (9, [5], 5)]
)
def test_every_nth_epoch_and_the_last_are_scored_and_only_they_can_be_the_best(every, evaluated, best):
    run = Epochs([0.2, 0.9, 0.6, 0.5, 0.1], eval_every=every).run()
    assert run.evaluated == evaluated and run.progress.best_epoch == best
    assert [row["epoch"] for row in run.progress.rows if row["val_balanced"] is not None] == evaluated
    assert {tuple(row) for row in run.progress.rows} == {("epoch", "lr", "train_loss", "val_balanced")}


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_run_that_scores_every_second_epoch_resumes_as_if_unbroken(cut):
    scores = [0.2, 0.5, 0.4, 0.3, 0.1]
    unbroken = Epochs(scores, eval_every=2).run()
    kept = next(kept for name, kept in unbroken.saved if name == "last" and kept.epoch == cut)
    resumed = Epochs(scores, Progress(**json.loads(json.dumps(kept.as_dict()))), eval_every=2).run()
    assert resumed.progress == unbroken.progress and resumed.best() == (2, 0.5)
    assert resumed.evaluated == [epoch for epoch in (2, 4, 5) if epoch > cut]


def test_a_finished_run_has_nothing_left_to_do():
    done = Epochs([0.2, 0.5]).run().progress
    again = Epochs([0.2, 0.5], done).run()
    assert again.trained == again.saved == []


def test_a_diverged_epoch_is_named_with_what_is_kept():
    with pytest.raises(DivergedError, match=r"step 4 of epoch 3: .*last\.pth of epoch 2 is kept"):
        (run := Epochs([0.2, 0.5, 0.4], stop=2)).run()
    assert run.progress.epoch == 2 and len(run.progress.rows) == 2
    with pytest.raises(DivergedError, match=r"of epoch 1: .*nothing of it was saved"):
        (run := Epochs([0.2, 0.5], stop=0)).run()
    assert run.saved == []


@pytest.mark.parametrize(
    ("select", "has_val", "column"),
    [
        ("last", True, "val_balanced"),
        ("val", True, "val_balanced"),
        ("last", False, None),
        ("test", True, "test_overall"),
        ("test", False, "test_overall"),
    ],
)
def test_the_test_set_picks_an_epoch_only_where_it_is_asked_to(select, has_val, column):
    assert score_column(select, has_val) == column


@pytest.mark.parametrize(("steps", "told"), [(13, 0), (14, 1), (40, 1)])
def test_timing_passes_every_batch_through_and_tells_once(steps, told):
    seconds = []
    assert list(timed(range(steps), 1000, seconds.append)) == list(range(steps))
    assert len(seconds) == told and all(second >= 0 for second in seconds)
