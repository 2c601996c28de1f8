from __future__ import annotations

import pytest

pytest.importorskip("tensorflow")

from homeostat.errors import HomeostatError
from homeostat.tf1 import estimator as est
from homeostat.tf1.contrib.learn import Experiment
from tests.messages import has_three_parts
from tests.tf1.models import Record, counting_model, ones


@pytest.fixture
def counter(tmp_path):
    return est.Estimator(counting_model, tmp_path, est.RunConfig(save_checkpoints_steps=2))


def test_training_and_evaluation(counter):
    hook, eval_hook, later = Record(), Record(), Record()
    experiment = Experiment(
        counter, ones(), ones(), None, 3, 2, train_monitors=[hook], eval_hooks=[eval_hook]
    )
    experiment.extend_train_hooks([later])
    assert experiment.train() is counter
    assert hook.calls.count("run") == later.calls.count("run") == 3
    assert experiment.evaluate() == {"mean": 1, "loss": 4, "global_step": 3}
    assert eval_hook.calls.count("run") == 2
    experiment.train()
    assert experiment.evaluate(name="again")["global_step"] == 3


@pytest.mark.parametrize(("frequency", "evaluations"), [(None, 3), (1, 3), (3, 2), (0, 1)])
def test_train_and_evaluate(counter, frequency, evaluations):
    hook = Record()
    experiment = Experiment(
        counter,
        ones(),
        ones(1),
        train_steps=5,
        eval_hooks=[hook],
        min_eval_frequency=frequency,
    )
    results, exports = experiment.train_and_evaluate()
    assert results == {"mean": 1, "loss": 6, "global_step": 5}
    assert exports == []
    assert hook.calls.count("begin") == evaluations


def test_one_step_of_all(counter):
    results, _ = Experiment(counter, ones(), ones(), train_steps=100).test()
    assert results == {"mean": 1, "loss": 2, "global_step": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": None},
        {"eval_metrics": {"a": len}},
        {"export_strategies": [len]},
        {"train_steps": 0},
        {"eval_steps": 0},
        {"train_monitors": [3]},
    ],
)
def test_wrong_arguments(counter, options):
    with pytest.raises(HomeostatError) as caught:
        Experiment(**{"estimator": counter, "train_input_fn": 0, "eval_input_fn": 0, **options})
    assert has_three_parts(caught.value)
