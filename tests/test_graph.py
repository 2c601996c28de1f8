"""`homeostat graph`: real scripts, checkpoints and events, each in a process of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests.command import run_homeostat, run_python

pytest.importorskip("tensorflow")
pytest.importorskip("tf_slim")

# Two graphs, in two folders, one with the updates. Each is trained and saved.
TRAINING = """
import sys
import numpy as np
import tensorflow as tf
from tf_keras.api._v1.keras.__internal__.legacy.layers import batch_normalization as legacy

def build(batch_norm, wait):
    x = tf.placeholder(tf.float32, [None, 3])
    with tf.variable_scope("tower"):
        h = tf.layers.dense(x, 4, name="first")
        h = batch_norm(h, training=True, name="bn")  # made here
    loss = tf.reduce_mean(tf.square(tf.layers.dense(h, 2, name="last")))
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS) if wait else []
    with tf.control_dependencies(updates):
        step = tf.train.AdamOptimizer().minimize(loss)
    return x, step

def train(name, batch_norm, wait):
    with tf.Graph().as_default() as graph, tf.Session() as session:
        x, step = build(batch_norm, wait)
        session.run(tf.global_variables_initializer())
        session.run(step, {x: np.ones((2, 3))})  # trained here
        print("trained", name)
        tf.train.Saver().save(session, f"{sys.argv[1]}/{name}/model.ckpt", global_step=1000)
        tf.summary.FileWriter(f"{sys.argv[1]}/{name}/events", graph).close()

train("forgotten", tf.layers.batch_normalization, False)
train("legacy", legacy, True)
"""


def line(words: str) -> str:
    found = (n for n, each in enumerate(TRAINING.splitlines(), start=1) if words in each)
    return str(next(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, and what it leaves when it runs to its end."""
    folder = tmp_path_factory.mktemp("graph")
    (folder / "train.py").write_text(TRAINING)
    run = run_homeostat("run", "--check", "off", str(folder / "train.py"), str(folder))
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "seen"


EVENTS = """
import sys
import tensorflow as tf
for event in tf.compat.v1.train.summary_iterator(sys.argv[1]):
    if event.graph_def:
        graph = tf.compat.v1.GraphDef.FromString(event.graph_def)
        print(sorted(node.name for node in graph.node if node.op.startswith("Apply")))
    for value in event.summary.value:
        print(value.metadata.plugin_data.plugin_name, value.tensor.string_val[0].decode())
"""


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each line of the table, by the first."""
    lines = [re.split(r" {2,}", each.strip()) for each in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}


def test_a_script_is_stopped_before_it_trains(folder, out):
    script = str(folder / "train.py")
    run = run_homeostat("graph", "--out", str(out), script, "nowhere")
    assert run.returncode == 1, run.stderr
    assert "trained forgotten" not in run.stdout
    assert rows(run.stdout)["tower/first"] == ["dense", "? × 4", "16", line("first")]
    made = line("# made here")
    assert rows(run.stdout)["tower/bn"] == ["batch norm", "? × 4", "16", "2, not run", made]
    words = " ".join(run.stdout.split())
    assert f"Training op Adam, run at {script}:{line('# trained here')}: 1 batch norm" in words
    assert f"tower/bn, made at {script}:{made}" in words
    assert "with tf.control_dependencies(update_ops): train_op = ..." in words
    assert "Stopped before the first training step, at" in words
    assert run.stdout.endswith(f"To see the graph: tensorboard --logdir {out}\n")
    read = run_python("-c", EVENTS, str(out / "events.out.tfevents.homeostat"))
    assert read.stdout.count("/ApplyAdam") == 6, read.stderr
    assert "text # " in read.stdout
    assert "- `tower/bn/AssignMovingAvg/AssignAdd`" in read.stdout


def test_a_whole_script_shows_all_its_graphs(folder, tmp_path, out):
    script = str(folder / "train.py")
    run = run_homeostat("graph", "--out", str(out), "--whole", script, str(tmp_path))
    assert run.returncode == 1, run.stderr
    assert run.stdout.startswith("trained forgotten\ntrained legacy\n")
    first, second = re.split(r"graph\s2\sof\s2\n", run.stdout)
    assert rows(first)["tower/bn"][3] == "2, not run"
    assert rows(second)["tower/bn"][3] == "2, run"
    assert "1 batch norm is updated once in a step." in second
    assert "Stopped" not in run.stdout
    written = [path.relative_to(out) for path in sorted(out.glob("graph-*/*"))]
    assert [str(each) for each in written] == [
        f"graph-{number}{os.sep}events.out.tfevents.homeostat" for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("path", "code", "verdict"),
    [
        ("forgotten/model.ckpt-1000", 1, "2, not run"),
        ("legacy/model.ckpt-1000.meta", 0, "2, run"),
        ("legacy", 0, "2, run"),
        ("forgotten/events", 1, "2, not run"),
    ],
)
def test_checkpoints_and_events_are_seen_without_running_them(folder, out, path, code, verdict):
    kept = out / "events.out.tfevents.1.mine"
    out.mkdir()
    kept.write_text("mine")
    run = run_homeostat("graph", "--out", str(out), str(folder / path))
    assert run.returncode == code, run.stderr
    assert rows(run.stdout)["tower/bn"] == ["batch norm", "? × 4", "16", verdict]
    assert rows(run.stdout)["last"] == ["dense", "? × 2", "10"]
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == [
        kept.name,
        "events.out.tfevents.homeostat",
    ]


def test_of_several_events_the_newest_is_taken(folder, out):
    run = run_homeostat("graph", "--out", str(out), str(folder))
    assert run.returncode == 0, run.stderr
    assert rows(run.stdout)["tower/bn"][3] == "2, run"
    assert "2 graphs were written; this is the newest, of 20" in run.stdout


def test_without_a_graph_the_variables_tell_what_they_can(folder, tmp_path, out):
    for path in (folder / "legacy").glob("model.ckpt-1000.[id]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    run = run_homeostat("graph", "--out", str(out), str(tmp_path / "model.ckpt-1000"))
    assert run.returncode == 0, run.stderr
    assert rows(run.stdout)["tower/bn"] == ["batch norm", "–", "16", "not known"]
    assert rows(run.stdout)["last"] == ["dense", "–", "10"]
    assert "There is no model.ckpt-1000.meta" in run.stdout
    assert "Adam" not in run.stdout
    assert not out.exists()


FAILING = """
import tensorflow as tf
with tf.Graph().as_default():
    h = tf.layers.dense(tf.placeholder(tf.float32, [None, 3]), 4)
    tf.layers.batch_normalization(h, training=True)
    raise SystemExit(7)
"""


def test_what_a_failing_script_built_is_shown(tmp_path, out):
    script = tmp_path / "fails.py"
    script.write_text(FAILING)
    run = run_homeostat("graph", "--out", str(out), str(script))
    assert run.returncode == 7, run.stderr
    assert rows(run.stdout)["batch_normalization"][3] == "2, no training op"
    assert "No training op: nothing in this graph applies gradients." in run.stdout
    script.write_text(FAILING.replace("raise SystemExit(7)", "h.nonsense"))
    run = run_homeostat("graph", "--out", str(out), str(script))
    assert run.returncode == 1
    assert "AttributeError" in run.stderr
    assert "Traceback" in run.stderr
    assert rows(run.stdout)["dense"][0] == "dense"


APART = """
import tensorflow as tf
h = tf.layers.dense(tf.zeros([2, 3]), 4)
h = tf.layers.batch_normalization(h, training=True)
step = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(h))
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    session.make_callable(step)()
    session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
"""


def test_updates_in_a_run_of_their_own_are_seen_in_the_whole_script(tmp_path, out):
    script = tmp_path / "apart.py"
    script.write_text(APART)
    for options, code, verdict in (([], 1, "2, not run"), (["--whole"], 0, "2, run apart")):
        run = run_homeostat("graph", "--out", str(out), *options, str(script))
        assert run.returncode == code, run.stderr
        assert rows(run.stdout)["batch_normalization"][3] == verdict
        assert ("Stopped" in run.stdout) == (not options)


def test_a_script_cannot_hold_on_by_catching_everything(tmp_path, out):
    script = tmp_path / "stubborn.py"
    script.write_text(
        dedent(
            """
            import tensorflow as tf
            w = tf.Variable(1.0)
            step = tf.train.GradientDescentOptimizer(0.1).minimize(w * w)
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                try:
                    session.run(step)
                except:
                    print("caught")
                session.run(w)
                print("went on")
            """
        )
    )
    run = run_homeostat("graph", "--out", str(out), str(script))
    assert run.returncode == 0, run.stderr
    assert "caught\n" in run.stdout
    assert "went on" not in run.stdout
    assert "Training ops: GradientDescent\n" in run.stdout


def test_a_broken_source_is_refused_in_a_line(folder, tmp_path, out):
    whole = (folder / "legacy" / "model.ckpt-1000.meta").read_bytes()
    (tmp_path / "model.ckpt-1000.meta").write_bytes(whole[:200])
    for path, words in (("model.ckpt-1000", "expected a MetaGraphDef"), ("nowhere", "a script")):
        run = run_homeostat("graph", "--out", str(out), str(tmp_path / path))
        assert (run.returncode, run.stdout) == (2, "")
        assert re.fullmatch(rf"homeostat: .*{words}.*\n", run.stderr)
    assert not out.exists()


def test_a_narrow_terminal_breaks_nothing(folder, out):
    run = run_homeostat("graph", "--out", str(out), str(folder / "legacy"), COLUMNS="40")
    assert run.returncode == 0, run.stderr
    assert max(len(each) for each in run.stdout.splitlines()[:-1]) <= 40


def test_help_teaches():
    text = " ".join(run_homeostat("graph", "--help").stdout.split())
    for words in ("homeostat graph --whole train.py", "--out", "Exit codes", "model.ckpt-1000"):
        assert words in text
