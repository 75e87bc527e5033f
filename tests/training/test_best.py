"""The best step so far: kept while a run goes on, and over a resumption."""

import types

import pytest

from cryjax.training import best


class Saved:
    """Stands in for the checkpoints in `best`; notes which steps were saved, and completely."""

    def __init__(self, latest):
        self.latest, self.steps, self.complete = latest, [], latest

    def rewind(self, step):
        if self.latest is not None and self.latest > step:
            self.latest = None

    def save_model(self, state, step, meta):
        self.steps.append(step)
        self.latest = step

    def wait(self):
        self.complete = self.latest

    def close(self):
        self.wait()


@pytest.fixture
def resumed(monkeypatch):
    """Goes on from step 4 of a run whose scores, a step each, are given."""

    def resume(scores, latest, patience=2):
        saved = Saved(latest)
        monkeypatch.setattr(best, "Checkpoints", lambda *_, **__: saved)
        lines = [{"step": n, "validation_auc": score} for n, score in enumerate(scores, 1)]
        workdir = types.SimpleNamespace(
            path=None, metrics=lambda: [{"step": 1, "loss": 1.0}, *lines]
        )
        config = types.SimpleNamespace(select="auc", patience=patience)
        run = types.SimpleNamespace(workdir=workdir, meta={})
        return best.Best(run, config, 4), saved

    return resume


def test_only_better_than_all_up_to_the_step_that_it_goes_on_from(resumed):
    kept, saved = resumed([0.1, 0.2, 0.3, 0.7, 0.9], latest=4)  # the last will be made again
    kept.take(None, 5, {"validation_auc": 0.6})
    assert not saved.steps and not kept.enough()
    assert kept.take(None, 6, {"validation_auc": 0.8, "x": 1.0}) == {
        "validation_auc": 0.8,
        "x": 1.0,
    }
    assert saved.steps == [6] and saved.complete == 6  # before the step counts
    for step in (7, 8):
        assert not kept.enough()
        kept.take(None, step, {"validation_auc": 0.8})
    assert kept.enough() and kept.close(None) == 6 and saved.steps == [6]


def test_patience_goes_on_too(resumed):
    kept, _ = resumed([0.1, 0.9, 0.3, 0.4], latest=2)
    assert kept.enough()


def test_the_best_that_is_gone_with_its_step_is_found_again(resumed):
    kept, saved = resumed([0.1, 0.2, 0.8, 0.7, 0.9], latest=5)
    kept.take(None, 5, {"validation_auc": 0.6})
    assert saved.steps == [5]


def test_without_scores_the_last_state_is_kept(resumed):
    kept, saved = resumed([], latest=None)
    assert kept.close(types.SimpleNamespace(step=7)) == saved.steps[0] == 7
