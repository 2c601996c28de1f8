"""`homeostat run`: real scripts, each in a process of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests.command import run_homeostat, run_python

pytest.importorskip("tensorflow")
pytest.importorskip("tf_slim")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # The working directory is another.
    return tmp_path


def write(path: Path, text: str) -> str:
    path.write_text(dedent(text).lstrip("\n"))
    return str(path)


def test_a_script_finds_what_it_would_have_found(folder):
    write(
        folder / "sibling.py",
        """
        import tensorflow as tf
        from tensorflow import placeholder
        """,
    )
    script = write(
        folder / "script.py",
        """
        from __future__ import print_function
        import json, os, pickle, sys
        import tensorflow as tf
        import tensorflow.compat.v1 as v1
        from tensorflow.compat import v1 as v1_again
        from tensorflow.contrib import slim
        import tensorflow.contrib.slim as slim_again
        import tensorflow.contrib.layers
        import tensorflow.python.ops.array_ops as array_ops
        from tensorflow.python.framework import ops
        import tensorflow.keras.layers as keras_layers
        import sibling
        import tf_keras
        import homeostat.tf1

        class Mine:
            pass

        x = sibling.placeholder(tf.float32, [None, 3])
        y = slim.fully_connected(x, 2, weights_initializer=tf.ones_initializer())
        z = tf.contrib.layers.flatten(y)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            values = session.run(z, {x: [[1, 2, 3]]}).tolist()
        copies = pickle.loads(pickle.dumps([tf.float32, Mine]))
        sys.modules["tensorflow"].lite  # lazily loaded by the real one
        print(json.dumps({
            "surface": [each is homeostat.tf1 for each in
                        (tf, v1, v1_again, sibling.tf, tf.compat.v1, tf.contrib.layers and tf)],
            "same": [slim is slim_again, slim.__name__, array_ops.__name__, ops.__name__],
            "real": [sys.modules["tensorflow"] is not tf, sys.modules["tensorflow"].__version__[0]],
            "keras": keras_layers.Dense is tf_keras.layers.Dense,
            "start": [__name__, sys.argv, sys.path[0], os.getcwd(), __file__],
            "main": [sys.modules["__main__"].Mine is Mine, copies == [tf.float32, Mine]],
            "values": values,
        }))
        sys.exit(7)
        """,
    )
    run = run_homeostat("run", script, "--rate", "0.1", "--help", "--", "--fix")
    assert run.returncode == 7, run.stderr
    assert "deprecated" not in run.stderr
    assert json.loads(run.stdout) == {
        "surface": [True] * 6,
        "same": [
            True,
            "tf_slim",
            "tensorflow.python.ops.array_ops",
            "tensorflow.python.framework.ops",
        ],
        "real": [True, "2"],
        "keras": True,
        "start": [
            "__main__",
            [script, "--rate", "0.1", "--help", "--", "--fix"],
            str(folder),
            str(Path.cwd()),
            script,
        ],
        "main": [True, True],
        "values": [[6.0, 6.0]],
    }


CONTRIB = """
import tf_slim
import tensorflow as tf
import tensorflow.contrib.slim as slim
import tensorflow.contrib.layers as layers
import tensorflow.contrib.slim.nets as nets
from tensorflow.contrib import data, slim as again
from tensorflow.contrib.framework import arg_scope, get_variables
from tensorflow.contrib.framework.python.ops import add_arg_scope, variables
from tensorflow.contrib.framework.python.ops.variables import get_model_variables
from tensorflow.contrib.layers import batch_norm
from tensorflow.contrib.layers.python.layers import layers as inner, regularizers
from tensorflow.contrib.rnn import GRUCell
from tensorflow.contrib.slim.nets import vgg
from tensorflow.contrib.slim.python.slim.nets import resnet_v1

with arg_scope([slim.conv2d], normalizer_fn=batch_norm):
    slim.conv2d(tf.zeros((2, 8, 8, 3)), 4, 3)
GRUCell(3)
print(
    tf_slim is slim is again is tf.contrib.slim,
    layers.batch_norm is batch_norm is slim.batch_norm is inner.batch_norm is tf_slim.batch_norm,
    (arg_scope, add_arg_scope) == (slim.arg_scope, slim.add_arg_scope),
    vgg is nets.vgg is slim.nets.vgg and resnet_v1 is nets.resnet_v1,
    regularizers.l2_regularizer is slim.l2_regularizer,
    variables.get_model_variables is get_model_variables is slim.get_model_variables,
    data.TFRecordDataset is tf.data.TFRecordDataset,
    [v.op.name for v in get_variables("Conv/BatchNorm", "beta")],
)
"""


def test_contrib_is_found_by_every_name(folder):
    run = run_homeostat("run", write(folder / "script.py", CONTRIB))
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True True True True True True True ['Conv/BatchNorm/beta']\n"
    assert "deprecated" not in run.stderr


# The mean of the batch is (2, 20), its variance (1, 100); an update goes a quarter of the way.
TRAINING = """
import atexit
import tensorflow as tf
from homeostat.tf1.records import record_call

x = tf.placeholder(tf.float32, [None, 2])
with tf.variable_scope("tower/bn") as scope:
    gamma = tf.get_variable("gamma", [2], initializer=tf.ones_initializer())
    moving = [tf.get_variable(name, [2], initializer=tf.zeros_initializer(), trainable=False)
              for name in ("moving_mean", "moving_variance")]
    mean, variance = tf.nn.moments(x, [0])
    updates = [tf.assign_sub(old, 0.25 * (old - new))
               for old, new in zip(moving, (mean, variance))]
    for update in updates:
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
    record_call(scope.name, tuple(updates))  # made here
y = (x - mean) / tf.sqrt(variance) * gamma
loss = tf.reduce_sum(y * [[0.0, 1.0], [2.0, 3.0]])
train_op = tf.train.GradientDescentOptimizer(0.5).minimize(loss)
session = tf.Session()
session.run(tf.global_variables_initializer())
atexit.register(lambda: print(session.run(moving + [gamma])))
for _ in range(2):
    print(session.run({"step": train_op, "loss": [tf.identity(loss)]},  # trained here
                      {x: [[1.0, 10.0], [3.0, 30.0]]}))
"""


def line(words: str, text: str = TRAINING) -> int:
    return next(n for n, each in enumerate(text.splitlines(), start=1) if words in each)


@pytest.fixture
def training(tmp_path: Path) -> str:
    (tmp_path / "train.py").write_text(TRAINING)
    return str(tmp_path / "train.py")


def numbers(text: str) -> list[list[float]]:
    """Return the numbers of each line, without those in names of types."""
    found = [re.findall(r"-?\d+\.\d*", each) for each in text.splitlines()]
    return [[float(number) for number in each] for each in found]


# The loss is 2 gamma_0 + 2 gamma_1, and a step takes half of (2, 2) off gamma.
UNMOVED, MOVED, GAMMA = [0.0] * 4, [0.875, 8.75, 0.4375, 43.75], [-1.0, -1.0]


def test_forgotten_updates_are_told_with_their_line(training):
    run = run_homeostat("run", training)
    assert run.returncode == 0, run.stderr
    assert numbers(run.stdout) == [[4.0], [0.0], [*UNMOVED, *GAMMA]]
    assert run.stderr.count("forgets updates") == 1
    assert f"homeostat: The training step at {training}:{line('# trained here')} " in run.stderr
    assert f"    tower/bn, made at {training}:{line('# made here')}\n" in run.stderr
    assert "    with tf.control_dependencies(update_ops): train_op = ...\n" in run.stderr


def test_they_can_stop_the_script_before_it_trains(training):
    run = run_homeostat("run", "--check", "error", training)
    assert run.returncode == 2
    assert numbers(run.stdout) == [[*UNMOVED, 1.0, 1.0]]
    assert f"    tower/bn, made at {training}:{line('# made here')}\n" in run.stderr
    assert "Nothing was run." in run.stderr
    assert "Traceback" not in run.stderr


def test_they_can_be_run_all_the_same(training):
    run = run_homeostat("run", "--fix", training)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].startswith("{'step': None, 'loss': [")
    assert numbers(run.stdout) == [[4.0], [0.0], [*MOVED, *GAMMA]]
    assert run.stderr.count("They are run with this step all the same") == 1


def test_an_error_is_shown_with_the_users_lines_only(folder):
    write(folder / "sibling.py", "def read():\n    return {}['key']\n")
    write(folder / "old.py", "try:\n    pass\nexcept ValueError, error:\n    print error\n")
    script = write(
        folder / "script.py",
        """
        import tensorflow as tf
        import sibling
        try:
            sibling.read()
        except KeyError:
            import old
        """,
    )
    run = run_homeostat("run", script)
    assert (run.returncode, run.stdout) == (1, "")
    frames = re.findall(r'File "(.+?)", line (\d+)', run.stderr)
    sibling, old = str(folder / "sibling.py"), str(folder / "old.py")
    assert frames == [(script, "4"), (sibling, "2"), (script, "6"), (old, "3")]
    assert "\n    return {}['key']\n" in run.stderr
    assert run.stderr.endswith(f"Run `2to3 -w {old}` or `futurize -w {old}` first.\n")


def test_python_2_is_not_translated(folder):
    script = write(folder / "script.py", 'import tensorflow as tf\nprint "rate", 0.1\n')
    run = run_homeostat("run", script)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.endswith(
        f"homeostat: {script}:2: 'print \"rate\", 0.1' is Python 2: expected Python 3, and "
        f"Homeostat does not translate it. Run `2to3 -w {script}` or `futurize -w {script}` "
        "first.\n"
    )


def test_a_notebook_runs_cell_by_cell(folder):
    cells = [
        "%matplotlib inline\nimport tensorflow as tf\nrate = 0.5",
        "%%bash\nls",
        ["if rate:\n", "    !ls\n", "text = '''\n", "%d'''\n", "print(tf.__name__, rate)"],
        "text = '''\n%d''' % 3\nprint(__name__, repr(text))\nraise ValueError('the end')",
    ]
    notebook = folder / "lesson.ipynb"
    code = [{"cell_type": "code", "source": cell} for cell in cells]
    words = {"cell_type": "markdown", "source": ["# no code"]}
    notebook.write_text(json.dumps({"cells": [words, *code]}))
    run = run_homeostat("run", str(notebook))
    assert run.returncode == 1
    assert run.stdout == "homeostat.tf1 0.5\n__main__ '\\n3'\n"
    assert f'File "{notebook}, cell 4", line 4, in <module>\n    raise ValueError(' in run.stderr
    assert run.stderr.endswith("ValueError: the end\n")
    assert f"{notebook}, cell 1, line 1: skipped '%matplotlib inline'" in run.stderr
    assert f"{notebook}, cell 2: skipped, since it is a cell of %%bash." in run.stderr
    assert f"{notebook}, cell 3, line 2: skipped '!ls'" in run.stderr


def test_what_is_not_there_is_said(folder):
    run = run_homeostat("run", "nowhere.py")
    assert run.returncode == 2
    assert "nowhere.py does not exist: expected a Python script or a notebook" in run.stderr


WITHOUT = """
import sys
sys.modules["tensorflow"] = None
from homeostat.cli import main
sys.argv = ["homeostat", "run", "script.py"]
main()
"""


def test_a_missing_tensorflow_names_its_install_command():
    run = run_python("-c", WITHOUT)
    assert run.returncode == 2
    assert "pip install 'homeostat[tf1]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_help_teaches():
    text = " ".join(run_homeostat("run", "--help").stdout.split())
    for words in ("homeostat run --fix train.py", "--check", "Exit codes", "lesson.ipynb"):
        assert words in text
