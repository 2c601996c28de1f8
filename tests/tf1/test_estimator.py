from __future__ import annotations

import functools
import inspect
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import tensorflow.compat.v1 as tf

from homeostat.errors import DataError, HomeostatError, HomeostatWarning, SpecError
from homeostat.tf1 import estimator as est
from homeostat.tf1.estimator.feeding import batch_of
from tests.messages import has_three_parts
from tests.tf1.models import Record, counting_model, digits_model, ones


@pytest.fixture
def counter(tmp_path):
    config = est.RunConfig(save_checkpoints_steps=2, tf_random_seed=1)
    return est.Estimator(counting_model, tmp_path, config)


def weight(estimator):
    return float(estimator.get_variable_value("weight"))


def step(estimator):
    return int(estimator.get_variable_value("global_step"))


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    images, labels = digits

    def input_fn():
        data = tf.data.Dataset.from_tensor_slices((images[:1500], labels[:1500]))
        return data.shuffle(1500, seed=1).repeat().batch(50, drop_remainder=True)

    estimator = est.Estimator(
        digits_model,
        tmp_path_factory.mktemp("digits"),
        est.RunConfig(tf_random_seed=3, save_summary_steps=10),
        params={"units": 32, "rate": 0.1},
    )
    return estimator.train(input_fn, steps=120)


class TestDigits:
    def test_held_out_digits_are_known(self, trained, digits):
        images, labels = digits
        input_fn = est.inputs.numpy_input_fn(images[1500:], labels[1500:], 64, shuffle=False)
        results = trained.evaluate(input_fn)
        assert results["accuracy"] > 0.9
        assert results["global_step"] == 120
        predicted = list(trained.predict(input_fn))
        assert len(predicted) == 297
        classes = np.array([one["classes"] for one in predicted])
        assert np.mean(classes == labels[1500:]) == pytest.approx(results["accuracy"], abs=1e-6)
        logits = np.stack([one["logits"] for one in predicted]).astype(np.float64)
        chosen = logits[np.arange(297), labels[1500:]]
        loss = np.mean(np.log(np.sum(np.exp(logits), 1)) - chosen)
        # Batches of 64 end with one of 41, which counts for less.
        assert results["loss"] == pytest.approx(loss, rel=1e-5)

    def test_the_checkpoint_explains_the_predictions(self, trained, digits):
        reader = tf.train.load_checkpoint(trained.model_dir)
        names = ("first", "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance", "last")
        first, gamma, beta, mean, variance, last = (reader.get_tensor(name) for name in names)
        assert np.abs(mean).min() > 0
        images = digits[0][1500:1510]
        hidden = (images @ first - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        input_fn = est.inputs.numpy_input_fn(images, shuffle=False)
        logits = [one["logits"] for one in trained.predict(input_fn, predict_keys=["logits"])]
        np.testing.assert_allclose(logits, np.maximum(hidden, 0) @ last, rtol=1e-4, atol=1e-4)

    def test_summaries_are_written(self, trained):
        tags = {}
        for path in sorted(Path(trained.model_dir).glob("events*")):
            for event in tf.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    tags.setdefault(value.tag, []).append(event.step)
        # Every tenth of 120 steps, and the first; a step's number may be read before or after it is
        # counted.
        assert len(tags["loss"]) in (12, 13)
        assert "global_step/sec" in tags

    def test_warm_start(self, trained, digits, tmp_path):
        warm = est.Estimator(
            digits_model, tmp_path, None, trained.params | {"rate": 0.0}, trained.model_dir
        )
        warm.train(est.inputs.numpy_input_fn(*digits, shuffle=False), steps=1)
        assert step(warm) == 1
        np.testing.assert_array_equal(
            warm.get_variable_value("first"), trained.get_variable_value("first")
        )
        # One update of the moving mean towards the batch, from where it was.
        batch = (digits[0][:128] @ warm.get_variable_value("first")).mean(0)
        expected = 0.9 * trained.get_variable_value("bn/moving_mean") + 0.1 * batch
        np.testing.assert_allclose(
            warm.get_variable_value("bn/moving_mean"), expected, rtol=1e-4, atol=1e-5
        )
        other = est.Estimator(
            digits_model, tmp_path / "x", None, trained.params | {"units": 8}, trained.model_dir
        )
        with pytest.raises(DataError, match="in shape") as caught:
            other.train(est.inputs.numpy_input_fn(*digits, shuffle=False), steps=1)
        assert has_three_parts(caught.value)


class TestTraining:
    def test_steps_count_from_the_present_step(self, counter):
        assert counter.train(ones(), steps=3) is counter
        assert (weight(counter), step(counter)) == (3, 3)
        counter.train(ones(), steps=2)
        assert (weight(counter), step(counter)) == (5, 5)

    def test_max_steps_count_from_the_first(self, counter):
        counter.train(ones(), max_steps=3)
        counter.train(ones(), max_steps=5)
        assert (weight(counter), step(counter)) == (5, 5)
        before = counter.latest_checkpoint()

        def unused():
            raise AssertionError("trained although max_steps is reached")

        counter.train(unused, max_steps=5)
        counter.train(unused, max_steps=2)
        assert counter.latest_checkpoint() == before

    def test_training_ends_with_its_input(self, counter):
        counter.train(ones(7))
        assert step(counter) == 7
        counter.train(ones(2), max_steps=100)
        assert step(counter) == 9

    def test_an_empty_input_is_told(self, counter):
        with pytest.warns(HomeostatWarning, match="made no step"):
            counter.train(ones(0))

    def test_another_estimator_resumes(self, counter):
        counter.train(ones(), steps=2)
        other = est.Estimator(counting_model, counter.model_dir)
        other.train(ones(), steps=1)
        assert (weight(other), step(counter)) == (3, 3)

    def test_checkpoints_are_kept_as_configured(self, tmp_path):
        config = est.RunConfig(tmp_path, save_checkpoints_steps=1, keep_checkpoint_max=2)
        estimator = est.Estimator(counting_model, config=config)
        estimator.train(ones(), steps=5)
        kept = sorted(path.name for path in tmp_path.glob("*.index"))
        assert kept == ["model.ckpt-4.index", "model.ckpt-5.index"]
        results = estimator.evaluate(ones(1), checkpoint_path=str(tmp_path / "model.ckpt-4"))
        assert results == {"mean": 1.0, "loss": 5.0, "global_step": 4}

    def test_no_checkpoints_if_none_are_wanted(self, tmp_path):
        config = est.RunConfig(tmp_path, save_checkpoints_steps=None, save_checkpoints_secs=None)
        estimator = est.Estimator(counting_model, config=config).train(ones(), steps=3)
        assert estimator.latest_checkpoint() is None

        class Listener(tf.train.CheckpointSaverListener):
            pass

        with pytest.raises(SpecError, match="saves no checkpoints"):
            estimator.train(ones(), steps=3, saving_listeners=[Listener()])

    def test_hooks_are_called(self, tmp_path):
        names = ("training_hooks", "training_chief_hooks", "evaluation_hooks")
        hooks = {name: [Record()] for name in names}
        mine = Record()

        class Listener(tf.train.CheckpointSaverListener):
            saved = ()

            def after_save(self, session, global_step_value):
                self.saved += (int(global_step_value),)

        listener = Listener()
        config = est.RunConfig(save_checkpoints_steps=2)

        def model(features, labels, mode):
            return counting_model(features, labels, mode, hooks)

        estimator = est.Estimator(model, tmp_path, config)
        estimator.train(ones(), hooks=[mine], steps=3, saving_listeners=[listener])
        calls = ["begin", "session", "run", "run", "run", "end"]
        assert mine.calls == calls
        assert hooks["training_hooks"][0].calls == calls
        assert hooks["training_chief_hooks"][0].calls == calls
        assert hooks["evaluation_hooks"][0].calls == []
        assert listener.saved[0] == 0
        assert listener.saved[-1] == 3
        estimator.evaluate(ones(2), hooks=[mine])
        # The input's end is met in a run.
        assert hooks["evaluation_hooks"][0].calls == calls
        assert mine.calls == calls * 2

    def test_a_scaffold_is_used(self, tmp_path):
        def scaffold():
            assign = tf.assign(tf.global_variables()[-1], 10.0)
            return tf.train.Scaffold(
                init_op=tf.group(tf.global_variables_initializer(), name="start"),
                local_init_op=tf.group(tf.local_variables_initializer(), tf.tables_initializer()),
                init_fn=lambda _, session: session.run(assign),
            )

        estimator = est.Estimator(counting_model, tmp_path, params={"scaffold": scaffold})
        estimator.train(ones(), steps=2)
        assert weight(estimator) == 12

    def test_seeds(self, tmp_path):
        def model(features, mode):
            w = tf.get_variable("w", [3])
            train_op = tf.assign_add(tf.train.get_global_step(), 1)
            return est.EstimatorSpec(mode, loss=tf.reduce_sum(w), train_op=train_op)

        def values(seed, name):
            config = est.RunConfig(tmp_path / name, tf_random_seed=seed)
            estimator = est.Estimator(model, config=config)
            estimator.train(lambda: tf.data.Dataset.from_tensors([1.0]), steps=1)
            return estimator.get_variable_value("w")

        a, b, c = values(1, "a"), values(1, "b"), values(2, "c")
        np.testing.assert_array_equal(a, b)
        assert np.all(a != c)


def test_two_estimators_and_the_default_graph(tmp_path):
    graph = tf.get_default_graph()
    before = [operation.name for operation in graph.get_operations()]
    one = est.Estimator(counting_model, tmp_path / "one")
    two = est.Estimator(counting_model, tmp_path / "two")
    one.train(ones(), steps=3)
    two.train(ones(), steps=1)
    one.train(ones(), steps=1)
    assert (weight(one), weight(two)) == (4, 1)
    streams = one.predict(ones(1, size=2)), two.predict(ones(1, size=2))
    assert [next(stream)["sum"] for stream in streams] == [5, 2]
    # Also while the generators wait in the middle of their input.
    assert tf.get_default_graph() is graph
    assert [next(stream)["sum"] for stream in streams] == [5, 2]
    assert two.evaluate(ones(1))["loss"] == 2
    assert tf.get_default_graph() is graph
    assert [operation.name for operation in graph.get_operations()] == before


class TestEvaluation:
    def test_the_loss_is_weighted_by_the_size_of_batches(self, counter):
        counter.train(ones(), steps=1)
        x = np.arange(10, dtype=np.float32) ** 2
        results = counter.evaluate(est.inputs.numpy_input_fn(x, batch_size=4, shuffle=False))
        # Batches of 4, 4 and 2: the mean of their means would be another number.
        assert results["loss"] == np.float32(x.mean() + 1)
        assert results["mean"] == pytest.approx(x.mean())
        assert np.mean([x[:4].mean(), x[4:8].mean(), x[8:].mean()]) + 1 != results["loss"]

    def test_steps_and_names(self, counter):
        counter.train(ones(), steps=1)
        x = np.arange(6, dtype=np.float32)
        input_fn = est.inputs.numpy_input_fn(x, batch_size=2, shuffle=False)
        assert counter.evaluate(input_fn, steps=2, name="short")["mean"] == x[:4].mean()
        events = list(Path(counter.model_dir, "eval_short").glob("events*"))
        values = {
            value.tag: value.simple_value
            for event in tf.train.summary_iterator(str(events[0]))
            for value in event.summary.value
        }
        assert values == {"loss": 2.5, "mean": 1.5}

    def test_nothing_to_evaluate(self, counter):
        for method in (counter.evaluate, counter.predict):
            with pytest.raises(DataError, match="no checkpoint") as caught:
                method(ones(1))
            assert has_three_parts(caught.value)
        counter.train(ones(), steps=1)
        with pytest.raises(DataError, match="no example") as caught:
            counter.evaluate(ones(0))
        assert has_three_parts(caught.value)
        with pytest.raises(DataError, match=r"no checkpoint .*/nowhere"):
            counter.evaluate(ones(1), checkpoint_path=counter.model_dir + "/nowhere")

    def test_an_input_without_end_is_told(self, counter):
        counter.train(ones(), steps=1)

        class Stop(tf.train.SessionRunHook):
            def after_run(self, run_context, run_values):
                run_context.request_stop()

        def endless():
            return tf.ones([2])

        assert counter.evaluate(endless, hooks=[Stop()])["loss"] == 2
        assert counter.evaluate(endless, steps=3)["loss"] == 2
        told = pytest.warns(HomeostatWarning, match="never come to an end")
        with tf.Graph().as_default(), told:
            batch_of(endless, est.ModeKeys.EVAL, {}, None, endless=False)


class TestPrediction:
    def test_examples_and_batches(self, counter):
        counter.train(ones(), steps=2)
        x = np.arange(5, dtype=np.float32)
        input_fn = est.inputs.numpy_input_fn(x, x, batch_size=2, shuffle=False)
        stream = counter.predict(input_fn)
        assert inspect.isgenerator(stream)
        assert [(one["x"], one["sum"]) for one in stream] == [(i, i + 2) for i in range(5)]
        batches = list(counter.predict(input_fn, "x", yield_single_examples=False))
        assert [batch["x"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
        assert set(batches[0]) == {"x"}

    def test_what_cannot_be_predicted(self, counter, tmp_path):
        counter.train(ones(), steps=1)
        with pytest.raises(SpecError, match="not all predicted") as caught:
            counter.predict(ones(1), ["nothing"])
        assert has_three_parts(caught.value)

        def model(features, mode):
            return est.EstimatorSpec(mode, predictions=tf.reduce_sum(features))

        scalar = est.Estimator(model, counter.model_dir)
        with pytest.raises(SpecError, match="cannot be split") as caught:
            next(scalar.predict(ones(1)))
        assert has_three_parts(caught.value)
        assert list(scalar.predict(ones(2), yield_single_examples=False)) == [4, 4]

    def test_a_generator_can_be_left(self, counter):
        counter.train(ones(), steps=1)
        hook = Record()
        stream = counter.predict(ones(), hooks=[hook])
        assert hook.calls == []
        next(stream)
        stream.close()
        assert hook.calls[:3] == ["begin", "session", "run"]


class TestInputs:
    @pytest.mark.parametrize("form", ["pair", "features", "table", "arguments"])
    def test_forms_of_input(self, counter, form):
        def pair():
            data = tf.data.Dataset.from_tensor_slices(np.ones(4, np.float32)).batch(2)
            x = tf.data.make_one_shot_iterator(data).get_next()
            return x, x

        def features():
            return tf.data.Dataset.from_tensor_slices(np.ones(4, np.float32)).batch(2)

        def table():
            keys = tf.lookup.KeyValueTensorInitializer(["a", "b"], [0.5, 1.5])
            values = tf.lookup.StaticHashTable(keys, 0.0)
            return tf.data.Dataset.from_tensor_slices(["a", "b"]).batch(2).map(values.lookup)

        def arguments(mode, params, config):
            assert mode == "eval"
            assert params == {}
            assert config.model_dir == counter.model_dir
            return features()

        counter.train(ones(), steps=1)
        assert counter.evaluate(locals()[form])["mean"] == 1

    def test_queues(self, counter):
        counter.train(ones(), steps=1)

        def queue():
            return tf.train.batch(
                [tf.train.limit_epochs(tf.ones([]), 6)], 4, allow_smaller_final_batch=True
            )

        assert counter.evaluate(queue)["mean"] == 1

    def test_arrays(self):
        x = {"a": np.arange(5), "b": np.ones((5, 2), np.float32)}
        input_fn = est.inputs.numpy_input_fn(x, np.arange(5) * 2, 3, num_epochs=2, shuffle=False)
        with tf.Graph().as_default(), tf.Session() as session:
            features, labels = input_fn()
            assert features["b"].shape.as_list() == [None, 2]
            batches = [session.run((features["a"], labels)) for _ in range(4)]
            with pytest.raises(tf.errors.OutOfRangeError):
                session.run(labels)
        assert [a.tolist() for a, _ in batches] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4]]
        assert all((2 * a == y).all() for a, y in batches)

    def test_shuffled_arrays(self):
        input_fn = est.inputs.numpy_input_fn(np.arange(50), batch_size=50, shuffle=True)
        with tf.Graph().as_default(), tf.Session() as session:
            given = session.run(input_fn())
        assert sorted(given) == list(range(50))
        assert list(given) != list(range(50))

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"x": np.ones(3)}, SpecError),
            ({"x": np.ones(3), "shuffle": False, "batch_size": 0}, SpecError),
            ({"x": np.ones(3), "shuffle": False, "num_epochs": 0}, SpecError),
            ({"x": np.ones(3), "y": np.ones(4), "shuffle": False}, DataError),
            ({"x": {}, "shuffle": False}, DataError),
            ({"x": np.ones(()), "shuffle": False}, DataError),
            ({"x": np.ones((0, 2)), "shuffle": True}, DataError),
            ({"x": {"a": np.ones(3)}, "y": {}, "shuffle": True}, DataError),
        ],
    )
    def test_wrong_arrays(self, arguments, error):
        with pytest.raises(error) as caught:
            est.inputs.numpy_input_fn(**arguments)
        assert has_three_parts(caught.value)


class TestTrainAndEvaluate:
    def run(self, counter, **options):
        evaluated = []

        class Note(tf.train.SessionRunHook):
            def end(self, session):
                evaluated.append(int(session.run("global_step:0")))

        results, exports = est.train_and_evaluate(
            counter,
            est.TrainSpec(ones(), max_steps=5),
            est.EvalSpec(ones(2), hooks=[Note()], **options),
        )
        assert exports == []
        assert results == {"mean": 1, "loss": 6, "global_step": 5}
        return evaluated

    def test_every_checkpoint_is_evaluated(self, counter):
        assert self.run(counter, throttle_secs=0) == [2, 4, 5]

    def test_not_more_often_than_the_throttle_lets(self, counter):
        assert self.run(counter, throttle_secs=1000) == [2, 5]

    def test_what_is_reached_is_evaluated_once(self, counter):
        counter.train(ones(), max_steps=5)
        assert self.run(counter) == [5]

    def test_exporters_are_refused(self):
        with pytest.raises(HomeostatError, match="exporters") as caught:
            est.EvalSpec(ones(), exporters=[object()])
        assert has_three_parts(caught.value)


def spec_of(**fields):
    def model(features, labels, mode):
        given = {name: make(features) for name, make in fields.items()}
        given.setdefault("mode", mode)
        return est.EstimatorSpec(**given)

    return model


def stray(features):
    with tf.Graph().as_default():
        return tf.ones([])


def no_labels(features, mode):
    raise AssertionError("called")


def sum_of(features):
    return tf.reduce_sum(features)


WRONG_MODELS = {
    "returns None": (lambda features, labels: None, "returned NoneType"),
    "no loss": (spec_of(train_op=sum_of), "loss is missing"),
    "no train_op": (spec_of(loss=sum_of), "train_op is missing"),
    "loss of a batch": (spec_of(loss=lambda x: x, train_op=sum_of), "loss has shape"),
    "train_op no operation": (spec_of(loss=sum_of, train_op=lambda x: 3), "train_op=3"),
    "stray loss": (spec_of(loss=stray, train_op=sum_of), "another graph"),
    "mode": (spec_of(mode=lambda x: "fit", loss=sum_of), "mode='fit'"),
    "other mode": (spec_of(mode=lambda x: "eval", loss=sum_of), "for mode 'eval'"),
    "hook": (
        spec_of(loss=sum_of, train_op=sum_of, training_hooks=lambda x: [Record]),
        "training_hooks holds",
    ),
    "metric": (
        spec_of(loss=sum_of, train_op=sum_of, eval_metric_ops=lambda x: {"a": x}),
        "wrong form",
    ),
    "reserved metric": (
        spec_of(loss=sum_of, train_op=sum_of, eval_metric_ops=lambda x: {"loss": (x, x)}),
        "a metric 'loss'",
    ),
    "no labels": (no_labels, "takes no labels"),
    "predictions": (
        spec_of(loss=sum_of, train_op=sum_of, predictions=lambda x: {"loss": None}),
        r"predictions\['loss'\]=None",
    ),
    "scaffold": (spec_of(loss=sum_of, train_op=sum_of, scaffold=lambda x: 1), "scaffold=1"),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_wrong_models(tmp_path, case):
    model, message = WRONG_MODELS[case]
    with pytest.raises(SpecError, match=message) as caught:
        est.Estimator(model, tmp_path).train(ones(), steps=1)
    assert has_three_parts(caught.value), caught.value


def test_missing_predictions_and_eval_loss(counter):
    counter.train(ones(), steps=1)
    wrong = est.Estimator(spec_of(train_op=sum_of), counter.model_dir)
    with pytest.raises(SpecError, match="loss is missing for mode 'eval'"):
        wrong.evaluate(ones(1))
    with pytest.raises(SpecError, match="predictions is missing for mode 'infer'"):
        wrong.predict(ones(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: est.Estimator(3, path),
        lambda path: est.Estimator(lambda labels: None, path),
        lambda path: est.Estimator(lambda features, other: None, path),
        lambda path: est.Estimator(lambda features: None, path, params={"a": 1}),
        lambda path: est.Estimator(counting_model, path, est.RunConfig("elsewhere")),
        lambda path: est.Estimator(counting_model, path, {"seed": 1}),
        lambda path: est.Estimator(counting_model, path, warm_start_from=3),
        lambda path: est.Estimator(counting_model, path).train(ones(), steps=1, max_steps=1),
        lambda path: est.Estimator(counting_model, path).train(ones(), steps=0),
        lambda path: est.Estimator(counting_model, path).train(ones(), hooks=[3], steps=1),
        lambda path: est.Estimator(counting_model, path).train(lambda: None, steps=1),
        lambda path: est.Estimator(counting_model, path).train(lambda a: None, steps=1),
        lambda path: est.Estimator(counting_model, path).train(lambda: (1, 2, 3), steps=1),
        lambda path: est.Estimator(counting_model, path).get_variable_names(),
        lambda path: est.RunConfig(save_checkpoints_steps=1, save_checkpoints_secs=1),
        lambda path: est.RunConfig(save_summary_steps=-1),
        lambda path: est.RunConfig(train_distribute=object()),
        lambda path: est.RunConfig(session_config={}),
        lambda path: est.RunConfig().replace(seed=1),
        lambda path: est.TrainSpec(ones(), max_steps=0),
        lambda path: est.EvalSpec(ones(), throttle_secs=-1),
        lambda path: est.train_and_evaluate(None, None, None),
    ],
)
def test_wrong_arguments(tmp_path, make):
    with pytest.raises(HomeostatError) as caught:
        make(tmp_path)
    assert has_three_parts(caught.value), caught.value


def test_a_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}}')
    with pytest.raises(HomeostatError, match="TF_CONFIG"):
        est.RunConfig()


def test_configurations(tmp_path):
    config = est.RunConfig(tmp_path, 7)
    assert (config.save_checkpoints_secs, config.save_checkpoints_steps) == (600, None)
    changed = config.replace(save_checkpoints_steps=5)
    assert (changed.save_checkpoints_secs, changed.save_checkpoints_steps) == (None, 5)
    assert changed.tf_random_seed == 7
    assert changed.replace(save_checkpoints_secs=9).save_checkpoints_steps is None
    estimator = est.Estimator(counting_model, config=config, params={"a": [1]})
    assert estimator.model_dir == str(tmp_path)
    estimator.params["a"].append(2)
    assert estimator.params == {"a": [1]}
    assert Path(est.Estimator(counting_model).model_dir).is_dir()


def test_derived_configurations(tmp_path):
    class Config(est.RunConfig):
        def __init__(self):
            super().__init__(save_checkpoints_steps=3)
            self.depth = -2

    config = est.Estimator(counting_model, tmp_path, Config()).config
    assert isinstance(config, Config)
    assert (config.depth, config.save_checkpoints_steps) == (-2, 3)
    with pytest.raises(SpecError, match="both given"):
        config.replace(save_checkpoints_secs=1, save_checkpoints_steps=1)


def test_a_spec_is_a_tuple_with_names():
    with tf.Graph().as_default():
        spec = est.EstimatorSpec("eval", loss=tf.ones([1]))
        assert spec.loss.shape == []
        assert spec.training_hooks == ()
        other = spec._replace(loss=tf.zeros([]))
        assert isinstance(other, est.EstimatorSpec)
        assert (other.mode, spec[0]) == ("eval", "eval")


def test_arguments_of_functions(tmp_path):
    seen = {}

    def model(features, labels, mode, params, config, more):
        seen.update(params=params, config=config, more=more)
        return counting_model(features, labels, mode, {})

    class Model:
        def __call__(self, **given):
            seen.update(given)
            return counting_model(given["features"], None, given["mode"], {})

    for function in (functools.partial(model, more=3), Model()):
        seen.clear()
        est.Estimator(function, tmp_path, params={"b": 1}).train(ones(), steps=1)
        assert seen["params"] == {"b": 1}
        assert seen["config"].model_dir == str(tmp_path)
    assert set(seen) == {"features", "labels", "mode", "params", "config"}
