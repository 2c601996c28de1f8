"""A slim convolutional network in an Estimator, and an Experiment that goes on with it.

python examples/tf1/slim_estimator.py FOLDER    # with the four IDX files of MNIST
"""

import sys
import tempfile

import tensorflow as tf
import tensorflow.contrib.slim as slim
from tensorflow.examples.tutorials.mnist import input_data

STEPS, MORE_STEPS, BATCH, RATE = 300, 400, 100, 0.005


def network(images, is_training):
    with slim.arg_scope(
        [slim.conv2d, slim.fully_connected],
        normalizer_fn=slim.batch_norm,
        normalizer_params={"is_training": is_training, "decay": 0.9},
    ):
        net = slim.conv2d(images, 8, 5, stride=2, scope="conv1")
        net = slim.conv2d(net, 16, 3, stride=2, scope="conv2")
        net = slim.fully_connected(slim.flatten(net), 64, scope="dense")
        return slim.fully_connected(net, 10, activation_fn=None, normalizer_fn=None, scope="logits")


def model_fn(features, labels, mode):
    logits = network(features, mode == tf.estimator.ModeKeys.TRAIN)
    digits = tf.argmax(logits, 1)
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode, predictions=digits)
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    # It runs the updates of the moving averages, too.
    train_op = slim.learning.create_train_op(
        loss, tf.train.AdamOptimizer(RATE), global_step=slim.get_or_create_global_step()
    )
    metrics = {"accuracy": tf.metrics.accuracy(labels, digits)}
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)


def input_fn(data, shuffle):
    images = data.images.reshape(-1, 28, 28, 1)
    dataset = tf.data.Dataset.from_tensor_slices((images, data.labels.astype("int64")))
    if shuffle:
        dataset = dataset.shuffle(10000, seed=0).repeat()
    return dataset.batch(BATCH).map(lambda x, y: (tf.cast(x, tf.float32) / 255, y))


def main(folder):
    # Bytes, since a data set's arrays become a part of the graph.
    mnist = input_data.read_data_sets(folder, dtype=tf.uint8)
    inputs = {
        "train": lambda: input_fn(mnist.train, shuffle=True),
        "test": lambda: input_fn(mnist.test, shuffle=False),
    }
    config = tf.estimator.RunConfig(tf_random_seed=0, save_checkpoints_steps=STEPS)
    with tempfile.TemporaryDirectory() as model_dir:
        estimator = tf.estimator.Estimator(model_fn, model_dir, config)
        results, _ = tf.estimator.train_and_evaluate(
            estimator,
            tf.estimator.TrainSpec(inputs["train"], max_steps=STEPS),
            tf.estimator.EvalSpec(inputs["test"], steps=None),
        )
        print(f"accuracy at step {STEPS} {results['accuracy']:.4f}")
        experiment = tf.contrib.learn.Experiment(
            estimator,
            train_input_fn=inputs["train"],
            eval_input_fn=inputs["test"],
            train_steps=STEPS + MORE_STEPS,
            eval_steps=None,
        )
        results, _ = experiment.train_and_evaluate()
        print(f"accuracy {results['accuracy']:.4f}")
        print(f"global step {results['global_step']}")
        digits = list(estimator.predict(inputs["test"]))
        print(f"accuracy of predictions {(digits == mnist.test.labels).mean():.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
