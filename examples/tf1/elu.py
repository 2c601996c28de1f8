"""A dense network with ELU and batch norm, trained, saved, and restored for prediction.

python examples/tf1/elu.py FOLDER    # with the four IDX files of MNIST
"""

import functools
import sys
import tempfile

import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

EPOCHS, BATCH, RATE = 4, 100, 0.05


def main(folder):
    mnist = input_data.read_data_sets(folder, seed=0)
    tf.set_random_seed(0)
    images = tf.placeholder(tf.float32, shape=(None, 784), name="images")
    labels = tf.placeholder(tf.int64, shape=(None,), name="labels")
    training = tf.placeholder_with_default(False, shape=(), name="training")

    he_init = tf.variance_scaling_initializer()
    dense = functools.partial(tf.layers.dense, kernel_initializer=he_init)
    batch_norm = functools.partial(tf.layers.batch_normalization, training=training, momentum=0.9)
    hidden = tf.nn.elu(batch_norm(dense(images, 300, name="hidden1")))
    hidden = tf.nn.elu(batch_norm(dense(hidden, 100, name="hidden2")))
    logits = batch_norm(dense(hidden, 10, name="outputs"))

    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    training_op = tf.train.GradientDescentOptimizer(RATE).minimize(loss)
    extra_update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    accuracy = tf.reduce_mean(tf.cast(tf.nn.in_top_k(logits, labels, 1), tf.float32))
    saver = tf.train.Saver()
    test = {images: mnist.test.images, labels: mnist.test.labels}
    with tempfile.TemporaryDirectory() as kept:
        path = f"{kept}/model.ckpt"
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for _ in range(EPOCHS * (mnist.train.num_examples // BATCH)):
                x, y = mnist.train.next_batch(BATCH)
                feed = {training: True, images: x, labels: y}
                session.run([training_op, extra_update_ops], feed)
            print(f"trained {session.run(accuracy, test):.4f}")
            saver.save(session, path)
        with tf.Session() as session:
            # Nothing is initialized: the moving statistics come from the file like the weights.
            saver.restore(session, path)
            print(f"restored {session.run(accuracy, test):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
