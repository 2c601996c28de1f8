"""One batch-norm network fed by each kind of tf.data iterator.

python examples/tf1/iterators.py FOLDER    # with the four IDX files of MNIST
"""

import functools
import sys

import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

STEPS, BATCH, RATE = 800, 60, 0.2


def prepared(data, size):
    return data.shuffle(10000, seed=0).repeat().batch(size).map(scaled)


def scaled(images, labels):
    return tf.cast(images, tf.float32) / 255.0, tf.cast(labels, tf.int64)


def fed():
    """Return a dataset whose arrays are fed at its start, and what feeds them."""
    images, labels = tf.placeholder(tf.uint8, (None, 784)), tf.placeholder(tf.uint8, (None,))
    size = tf.placeholder(tf.int64, ())
    data = prepared(tf.data.Dataset.from_tensor_slices((images, labels)), size)
    return data, lambda part: {images: part[0], labels: part[1], size: part[2]}


# Each kind gives the next batch, then what to feed in training, then what to feed in the test,
# having turned to that part of the data.


def one_shot(session, train, test):
    # It takes no feeds and runs through one dataset only: the test replaces its batches.
    pairs = functools.partial(zip, *train[:2])
    data = tf.data.Dataset.from_generator(pairs, (tf.uint8, tf.uint8), ((784,), ()))
    images, labels = prepared(data, train[2]).make_one_shot_iterator().get_next()
    yield images, labels
    yield {}
    yield {images: test[0] / 255.0, labels: test[1]}


def initializable(session, train, test):
    data, feed = fed()
    iterator = data.make_initializable_iterator()
    yield iterator.get_next()
    for part in (train, test):
        session.run(iterator.initializer, feed(part))
        yield {}


def reinitializable(session, train, test):
    data = [fed(), fed()]
    types, shapes = data[0][0].output_types, data[0][0].output_shapes
    # It belongs to no dataset, and starts on any of this structure.
    iterator = tf.data.Iterator.from_structure(types, shapes)
    starts = [iterator.make_initializer(each) for each, _ in data]
    yield iterator.get_next()
    for part, start, (_, feed) in ((train, starts[0], data[0]), (test, starts[1], data[1])):
        session.run(start, feed(part))
        yield {}


def feedable(session, train, test):
    data = [fed(), fed()]
    types, shapes = data[0][0].output_types, data[0][0].output_shapes
    # It has no state: each run reads from the iterator whose handle is fed.
    handle = tf.placeholder(tf.string, ())
    yield tf.data.Iterator.from_string_handle(handle, types, shapes).get_next()
    for part, (each, feed) in ((train, data[0]), (test, data[1])):
        iterator = each.make_initializable_iterator()
        session.run(iterator.initializer, feed(part))
        yield {handle: session.run(iterator.string_handle())}


def run(kind, train, test):
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        stages = kind(session, train, test)
        images, labels = next(stages)
        is_training = tf.placeholder_with_default(False, ())
        hidden = tf.layers.dense(images, 100, use_bias=False)
        hidden = tf.nn.relu(tf.layers.batch_normalization(hidden, training=is_training))
        logits = tf.layers.dense(hidden, 10)
        loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
        accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            train_op = tf.train.GradientDescentOptimizer(RATE).minimize(loss)
        session.run(tf.global_variables_initializer())
        feed = {is_training: True, **next(stages)}
        for _ in range(STEPS):
            session.run(train_op, feed)
        print(f"{kind.__name__} {session.run(accuracy, next(stages)):.4f}")


def main(folder):
    mnist = input_data.read_data_sets(folder, dtype=tf.uint8)
    train = (mnist.train.images, mnist.train.labels, BATCH)
    test = (mnist.test.images, mnist.test.labels, len(mnist.test.labels))
    for kind in (one_shot, initializable, reinitializable, feedable):
        run(kind, train, test)


if __name__ == "__main__":
    main(sys.argv[1])
