"""What `homeostat graph` opens, and what of it is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

import homeostat.tf1 as tf
from homeostat.errors import DataError
from homeostat.tf1.graph.events import write_graphs
from homeostat.tf1.graph.source import open_source
from tests.messages import has_three_parts
from tests.tf1.steps import BATCH, batch_norm, loss_of, minimize

PREFIX = "model.ckpt-7"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint, its graph, and events with the same graph."""
    with tf.Graph().as_default() as graph, tf.Session() as session:
        minimize(loss_of(batch_norm(tf.constant(BATCH))))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "model.ckpt"), global_step=7)
        writer = tf.summary.FileWriter(str(tmp_path / "events"))
        writer.add_graph(graph)
        writer.add_meta_graph(tf.train.export_meta_graph())
        writer.close()
    return tmp_path


def events(folder: Path) -> Path:
    (path,) = (folder / "events").iterdir()
    return path


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("name", ["", PREFIX, f"{PREFIX}.meta", f"{PREFIX}.index", "events"])
def test_all_that_there_is_gives_the_same(folder, name):
    opened = open_source(folder / name)
    ((graph, report),) = opened.graphs
    assert graph is not None
    assert [(each.name, each.verdict) for each in report.layers] == [("bn", "not run")]
    assert (opened.notes, opened.code, report.forgotten) == ((), 0, True)


def test_a_folder_without_the_saved_graph_gives_that_of_its_events(folder):
    (folder / f"{PREFIX}.meta").unlink()
    ((graph, report),) = open_source(folder).graphs
    assert graph is not None
    assert report.layers[0].verdict == "not run"


def test_events_that_are_still_written_are_read_as_far_as_they_go(folder):
    path = events(folder)
    cut(path, path.stat().st_size - 20)
    ((_, report),) = open_source(path).graphs
    assert report.layers[0].verdict == "not run"


def test_of_several_graphs_the_newest_is_taken(folder):
    with tf.Graph().as_default() as graph:
        batch_norm(tf.constant(BATCH), "newer")
        tf.summary.FileWriter(str(folder / "events" / "newer"), graph).close()
    opened = open_source(folder / "events")
    assert [layer.name for layer in opened.graphs[0][1].layers] == ["newer"]
    (note,) = opened.notes
    assert note.startswith("2 graphs were written; this is the newest, of 20")


def test_a_checkpoint_of_tensorflow_2_tells_its_layers(tmp_path):
    with tf.Graph().as_default(), tf.Session() as session:
        root = tf.train.Checkpoint(
            dense=tf.train.Checkpoint(kernel=tf.Variable(tf.ones([3, 4]))),
            bn=tf.train.Checkpoint(moving_mean=tf.Variable(tf.ones([4]))),
        )
        session.run([each.initializer for each in tf.global_variables()])
        prefix = root.save(str(tmp_path / "model"), session=session)
    ((graph, report),) = open_source(Path(prefix)).graphs
    assert graph is None
    assert [(each.name, each.kind, each.parameters) for each in report.layers] == [
        ("bn", "batch norm", 4),
        ("dense", "dense", 12),
    ]


def broken_meta(folder: Path) -> Path:
    cut(folder / f"{PREFIX}.meta", 200)
    return folder / PREFIX


def broken_collection(folder: Path) -> Path:
    path = folder / f"{PREFIX}.meta"
    meta = tf.MetaGraphDef.FromString(path.read_bytes())
    meta.collection_def["trainable_variables"].bytes_list.value[0] = b"\xff"
    path.write_bytes(meta.SerializeToString())
    return path


def broken_index(folder: Path) -> Path:
    (folder / f"{PREFIX}.meta").unlink()
    cut(folder / f"{PREFIX}.index", 30)
    return folder / PREFIX


def broken_events(folder: Path) -> Path:
    cut(events(folder), 500)
    return folder / "events"


def events_without_a_graph(folder: Path) -> Path:
    with tf.Graph().as_default():
        writer = tf.summary.FileWriter(str(folder / "losses"))
        writer.add_summary(tf.Summary(), 1)
        writer.close()
    return folder / "losses"


def state(text: str) -> object:
    def write(folder: Path) -> Path:
        (folder / "checkpoint").write_text(text)
        return folder

    return write


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


BROKEN = {
    "expected a MetaGraphDef": broken_meta,
    "collection 'trainable_variables' cannot be read": broken_collection,
    "expected a checkpoint as tf.train.Saver": broken_index,
    "expected an events file": broken_events,
    "holds events without a graph": events_without_a_graph,
    "checkpoint names no": state('model_checkpoint_path: "gone"'),
    "names no checkpoint that is there": state("%%%"),
    "holds neither a checkpoint nor events": empty,
    "does not exist: expected a script": lambda folder: folder / "nowhere",
    "does not exist: expected a Python script": lambda folder: folder / "nowhere.py",
    "is a folder: expected a Python script": lambda folder: (folder / "events").rename(
        folder / "events.py"
    ),
}


@pytest.mark.parametrize("words", BROKEN)
def test_what_is_broken_is_refused(folder, words, capfd):
    path = BROKEN[words](folder)
    with pytest.raises(DataError, match=words) as caught:
        open_source(path)
    assert has_three_parts(caught.value)
    assert "Logging error" not in capfd.readouterr().err


def test_what_cannot_be_written_is_said(folder):
    opened = open_source(folder)
    (folder / "file").write_text("mine")
    with pytest.raises(DataError, match="cannot be written to") as caught:
        write_graphs(folder / "file", list(opened.graphs))
    assert has_three_parts(caught.value)
    assert (folder / "file").read_text() == "mine"


def test_only_scripts_have_arguments(folder):
    with pytest.raises(DataError, match="follows") as caught:
        open_source(folder, ["--whole"])
    assert has_three_parts(caught.value)
