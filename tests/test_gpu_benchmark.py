"""The GPU benchmark takes its whole way on a CPU, times nothing that is wrong, and tells what is
missing."""

import csv
import itertools
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import chart, columns, exact, network, testing, times, traffic, verdict
from benchmarks.gpu.budget import RESERVE_SECONDS, Budget, Deadline
from benchmarks.gpu.cases import (
    EPSILON,
    LARGE,
    RESNET_50,
    Case,
    choose_cases,
    make_inputs,
    make_parameters,
)
from benchmarks.gpu.clock import Candidate, HostClock, clock_of, prepare, take_turns
from benchmarks.gpu.rows import Rows, read_rows, timed
from homeostat import reference

ROOT = Path(__file__).parent.parent
SHAPE = (4, 6, 5, 3)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def late():
    return Deadline(0.0, lambda: 1.0)


@pytest.fixture
def early():
    return Deadline(1e9, lambda: 0.0)


# Bytes, by hand: reads and writes of one tensor.
MOVED = {
    traffic.HOMEOSTAT: (2, 2, 3, 3, 3, 4, 8, 8, 11),
    traffic.HOMEOSTAT_ON_CHIP: (2, 2, 3, 2, 2, 3, 5, 5, 8),
    traffic.EAGER: (2, 4, 7, 3, 5, 8, 8, 13, 16),
    traffic.COMPILED: (2, 2, 3, 3, 3.5, 4.5, 8, 9.5, 12),
}


@pytest.mark.parametrize("path", traffic.PATHS)
def test_bytes_of_each_path(path):
    calls = itertools.product(traffic.WORKS, traffic.FORMS)
    assert tuple(traffic.moved(path, work, form) for work, form in calls) == MOVED[path]


def test_the_floor_is_no_more_than_what_streaming_moves():
    assert traffic.streaming_floor("forward", "plain") == 3
    assert traffic.streaming_floor("forward+backward", "relu") == 8
    for work, form in itertools.product(traffic.WORKS, traffic.FORMS):
        floor = traffic.streaming_floor(work, form)
        assert floor <= traffic.moved(traffic.HOMEOSTAT, work, form)


def test_the_page_has_the_table_of_bytes():
    assert traffic.markdown() in (ROOT / "docs" / "gpu.md").read_text()


def test_the_page_has_the_measured_rows_or_says_that_there_are_none():
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = read_rows(ROOT / "benchmarks" / "results" / "gpu.csv")
    if rows:
        assert verdict.markdown(rows) in page
        assert rows[0]["gpu"] in page
    else:
        assert "Nothing of this page has been measured on a GPU yet." in page


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("form", traffic.FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_expected_is_what_the_oracle_says(monkeypatch, layout, form, training):
    monkeypatch.setattr(exact, "SLICE_ELEMENTS", 2 * 4 * 5 * 3)
    case = Case(SHAPE, form, "bfloat16", layout, training)
    inputs, parameters = make_inputs(case, "cpu", 0)[0], make_parameters(case, "cpu")
    slices = list(exact.expected(case, inputs, parameters, backward=training))
    assert len(slices) == 3
    found = {name: torch.cat([s[name] for _, s in slices], 1 if slices[0][1][name].ndim > 1 else 0)
             for name in slices[0][1]}  # fmt: skip
    x, dy = (t.detach().double().numpy() for t in (inputs.x, inputs.dy))
    gamma, beta, mean, variance = (t.double().numpy() for t in parameters)
    options = {"axis": 1, "epsilon": EPSILON, "activation": "relu" if case.relu else None}
    options["residual"] = inputs.residual.detach().double().numpy() if case.adds else None
    if not training:
        y = reference.normalize(x, mean, variance, gamma, beta, **options)
        np.testing.assert_allclose(found["y"].numpy(), y, atol=1e-12)
        return
    y, batch = reference.normalize_batch(x, gamma, beta, **options)
    gradients = reference.backward(dy, x, gamma, beta, **options)
    wanted = {"y": y, "mean": batch.mean, "variance": batch.variance, "dx": gradients.x}
    wanted |= {"dgamma": gradients.gamma, "dbeta": gradients.beta}
    wanted |= {"dresidual": gradients.residual} if case.adds else {}
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), array, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", ["y", "dx", "dgamma", "dbeta", "dresidual"])
@pytest.mark.parametrize("spoil", [lambda t: t * 1.05, lambda t: t * float("nan")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_wrong_result_is_found_in_every_place(name, spoil, dtype):
    case = Case(SHAPE, "add+relu", dtype)
    inputs, parameters = make_inputs(case, "cpu", 0)[0], make_parameters(case, "cpu")
    exact.clear_corner(case, inputs, parameters)
    column = columns.build(columns.EAGER, case, parameters, "eager")
    results = dict(exact.name_results(case, "forward+backward", column.step(case, inputs)))
    assert exact.fault(case, results, inputs, parameters) is None
    results[name] = spoil(results[name])
    assert exact.fault(case, results, inputs, parameters).startswith(f"{name} is off")


def test_an_output_of_another_dtype_is_wrong():
    case = Case(SHAPE, "plain")
    inputs, parameters = make_inputs(case, "cpu", 0)[0], make_parameters(case, "cpu")
    results = {"y": torch.zeros(SHAPE)}
    assert "float32" in exact.fault(case, results, inputs, parameters)


def test_a_gradient_at_the_corner_of_the_relu_is_not_asked_for():
    case = Case(SHAPE, "relu")
    inputs, parameters = make_inputs(case, "cpu", 0)[0], make_parameters(case, "cpu")
    inputs.dy.fill_(1)
    exact.clear_corner(case, inputs, parameters)
    ((_, found),) = exact.expected(case, inputs, parameters, backward=False)
    inside = (found["y"] > 0) & (found["y"] < 0.04)
    assert inside.any()
    assert not inputs.dy[inside].any()
    assert inputs.dy[found["y"] > 0.04].all()


def settings(*names):
    return times.Settings("cpu", names, 3, "eager")


def test_ours_is_not_timed_where_it_is_wrong(monkeypatch, early):
    right = columns._ours

    def wrong(case, parameters):
        column = right(case, parameters)
        return column._replace(apply=lambda x, residual: column.apply(x, residual) * 1.02)

    monkeypatch.setattr(columns, "_ours", wrong)
    asked = settings(columns.COPY, columns.OURS, columns.EAGER)
    rows = list(times.measure_cases([Case(SHAPE, "relu")], asked, HostClock(), early, 1e9))
    by_column = {(row["column"], row["work"]): row for row in rows}
    for work in ("forward+backward", "forward"):
        assert by_column[columns.OURS, work]["state"] == "wrong"
        assert by_column[columns.OURS, work]["note"].startswith("y is off")
        assert "p50_ms" not in by_column[columns.OURS, work]
        assert by_column[columns.EAGER, work]["p50_ms"] > 0
    outcomes = verdict.judge([complete(row) for row in rows])
    assert outcomes[1].told == "not met, 0 of 1 calls"


def complete(row):
    """A row as it comes from its file."""
    names = (*verdict.KEY, "column", "state", "note", "p50_ms", "follow_ms", "of_copy")
    empty = dict.fromkeys((*names, "of_largest_copy"), "")
    return {name: str(value) for name, value in (empty | row).items()}


def test_a_column_that_fails_does_not_cost_the_others(monkeypatch, early):
    def fail(*_):
        raise RuntimeError("no kernel\nmore")

    monkeypatch.setattr(columns, "_ours", fail)
    asked = settings(columns.OURS, columns.EAGER)
    rows = list(times.measure_cases([Case(SHAPE, "plain")], asked, HostClock(), early, 1e9))
    assert [(row["column"], row["state"]) for row in rows[:2]] == [
        ("homeostat", "failed"), ("torch", "measured"),
    ]  # fmt: skip
    assert rows[0]["note"] == "RuntimeError: no kernel"


def test_an_error_of_the_device_ends_the_run(monkeypatch, early):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(columns, "_ours", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        list(times.measure_cases([Case(SHAPE, "plain")], settings("homeostat"), None, early, 1e9))


def test_what_no_time_is_left_for_is_told(late):
    asked = settings(*columns.COLUMNS)
    rows = list(times.measure_cases([Case(SHAPE, "relu")], asked, HostClock(), late, 1e9))
    assert len(rows) == 2 * len(columns.COLUMNS)
    assert {(row["state"], row["note"]) for row in rows} == {("not measured", "no time was left")}
    found = [complete(row) for row in rows]
    assert {outcome.told for outcome in verdict.judge(found)} == {"not measured"}
    assert "2 calls" in verdict.unmeasured(found)
    assert "not measured" in verdict.markdown(found)
    trained = list(network.measure_network("cpu", HostClock(), late, "eager"))
    assert {row["state"] for row in trained} == {"not measured"}


def test_phases_share_the_time_and_hand_on_what_they_leave():
    now = [100.0]
    budget = Budget(60 + RESERVE_SECONDS, {"a": 1, "b": 2, "c": 3}, lambda: now[0])
    first = budget.start("a")
    assert first.left() == pytest.approx(10)
    assert first.part(4).left() == pytest.approx(2.5)
    now[0] = 105
    second = budget.start("b")
    assert second.left() == pytest.approx(55 * 2 / 5)
    now[0] = 155
    assert second.left() == 0
    assert not second.allows()
    assert budget.start("c").left() == pytest.approx(5)


def test_inputs_in_turn_are_more_than_the_cache():
    case = Case((2, 8, 4, 4), "add+relu")
    sets = make_inputs(case, "cpu", cache=3 * case.nbytes)
    assert (len(sets) - 1) * case.nbytes >= 2 * 3 * case.nbytes
    assert len({inputs.x.data_ptr() for inputs in sets}) == len(sets)
    assert not torch.equal(sets[0].x, sets[1].x)
    seen = []
    column = columns.Column(lambda x, residual: seen.append(x.data_ptr()) or x, ())
    call = column.candidate(case, "forward", sets).call
    for _ in range(2 * len(sets)):
        call()
    assert seen == [inputs.x.data_ptr() for inputs in sets] * 2


def test_every_round_runs_every_candidate_in_another_order():
    calls = []
    candidates = {n: Candidate(lambda n=n: calls.append(n)) for n in "abc"}
    clock = HostClock()
    prepare(clock, candidates)
    calls.clear()
    samples = take_turns(clock.sample, candidates, 20)
    rounds = {tuple(calls[i : i + 3]) for i in range(0, 60, 3)}
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(rounds) > 2
    assert all(len(samples[n]) == 20 for n in "abc")


def test_cudnn_is_off_for_the_native_column_alone():
    case = Case(SHAPE, "plain")
    parameters = make_parameters(case, "cpu")
    before = torch.backends.cudnn.enabled
    with columns.build(columns.NATIVE, case, parameters, "eager").around():
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == before
    with columns.build(columns.EAGER, case, parameters, "eager").around():
        assert torch.backends.cudnn.enabled == before


def test_bfloat16_with_the_channels_last_comes_first():
    cases = choose_cases(None, None, None, quick=False)
    first = cases[: 3 * len((*RESNET_50, *LARGE))]
    assert {(case.dtype, case.layout, case.training) for case in first} == {
        ("bfloat16", "NHWC", True)
    }
    assert {case.shape for case in first} == {*RESNET_50, *LARGE}
    assert {case.dtype for case in cases} == {"bfloat16", "float16", "float32"}
    assert {case.layout for case in cases} == {"NHWC", "NCHW"}
    assert len(cases) == len(set(cases))


def times_rows(ours, eager=4.0, compiled=3.0, form="relu"):
    common = {"dtype": "bfloat16", "layout": "NHWC", "work": "forward+backward", "form": form}
    common |= {"shape": "1x2x3x4", "state": "measured", "of_copy": 0.85, "of_largest_copy": 0.7}
    found = {"homeostat": ours, "torch": eager, "torch.compile": compiled}
    return [
        complete(common | {"column": name, "p50_ms": ms, "follow_ms": ms})
        for name, ms in found.items()
    ]


def told(rows):
    return [re.split(",", outcome.told)[0] for outcome in verdict.judge(rows)]


def test_bars_are_judged_by_the_slowest_call():
    assert told(times_rows(2.0)) == [
        "met", "met", "not measured", "not measured", "met", "not met", "met", "met",
    ]  # fmt: skip
    slow = [row | {"shape": "9x9x9x9"} for row in times_rows(3.5)]
    assert told(times_rows(2.0) + slow)[:2] == ["not met", "not met"]
    outcome = verdict.judge(times_rows(2.0) + slow)[0]
    assert "least 0.86 (bfloat16 NHWC forward+backward relu 9x9x9x9)" in outcome.found
    assert outcome.told == "not met, 1 of 2 calls"


def test_the_faster_of_the_eager_columns_is_the_peer():
    rows = times_rows(2.0)
    faster = {**rows[1], "column": "torch native", "p50_ms": "3.0"}
    groups = verdict.group_rows([*rows, faster])
    assert verdict._against_eager(next(iter(groups.values()))) == pytest.approx(1.5)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_chart_has_a_bar_for_every_measured_column():
    rows = times_rows(2.0)
    rows[2] = {**rows[2], "state": "failed", "note": "<no>"}
    page = chart.render(rows, "A <GPU>")
    tags = Tags()
    tags.feed(page)
    bars = [attrs["class"] for tag, attrs in tags.found if tag == "rect"]
    assert bars == ["eager", "ours"]
    assert "torch.compile: not measured" in page
    assert "A &lt;GPU&gt;" in page
    assert not any("src" in attrs or "href" in attrs for _, attrs in tags.found)


def test_a_network_that_trains_differently_is_not_timed():
    size = network.SIZES["cpu"]
    native, ours = network._models(size, "cpu")
    assert network.fault(native, ours, size, "cpu") is None
    with torch.no_grad():
        ours[1].weight.mul_(1.2)
    assert network.fault(native, ours, size, "cpu")


def test_all_norms_of_the_network_are_converted_and_fused():
    torch.manual_seed(0)
    from benchmarks.gpu.resnet import resnet50
    from homeostat.torch import convert

    model, report = convert(resnet50())
    assert len(report.norms) == 53
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    plain = [record.name for record in report.norms if record.activation is None]
    # What follows the norms of the shortcuts is an addition.
    assert all("shortcut" in name for name in plain)
    assert len(plain) == 4
    assert sum(bool(record.residual) for record in report.norms) == 16


def run(*arguments, expect=0):
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        # Threads that wait for each other take most of the time of tensors this small.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == expect, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_the_dry_run_takes_the_whole_way(tmp_path):
    output = run(
        *("--device", "cpu", "--out", str(tmp_path), "--minutes", "3", "--rounds", "3"),
        *("--shapes", "4x8x6x6", "--dtypes", "bfloat16", "--backend", "aot_eager"),
        *("--tests", "tests/test_layout.py", "--helpers", "1"),
    )
    assert re.search(r"tests: \d+ passed", output)
    with (tmp_path / "gpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["work"] == "copy"
    calls = {tuple(row[name] for name in ("form", "work", "column")) for row in rows[1:]}
    works = ("forward+backward", "forward", "inference")
    assert calls == set(itertools.product(traffic.FORMS, works, columns.COLUMNS))
    same = [row for row in rows if row["column"] == columns.NATIVE and row["work"] != "inference"]
    # Without CUDA there is one native batch norm, cuDNN or not.
    assert {row["note"] for row in same} == {"the same as torch"}
    measured = [row for row in rows if row not in same]
    assert {row["state"] for row in measured} == {"measured"}, verdict.faults(rows)
    assert all(0 < float(row["p20_ms"]) <= float(row["p80_ms"]) for row in measured)
    assert all(float(row["follow_ms"]) > 0 for row in measured[1:])
    steps = [r for r in measured if r["work"] == "forward+backward" and r["column"] == "homeostat"]
    assert [int(row["tensor_bytes"]) for row in steps] == [4 * 8 * 6 * 6 * 2] * 3
    assert all(int(row["saved_bytes"]) >= 4 * 8 * 6 * 6 * 2 for row in steps)
    trained = read_rows(tmp_path / "gpu_network.csv")
    assert [row["column"] for row in trained] == [*network.COLUMNS, *network.COMPILING]
    assert {row["state"] for row in trained} == {"measured"}
    assert all(float(row["images_per_s"]) > 0 for row in trained)
    tuned = read_rows(tmp_path / "gpu_tuned.csv")
    assert tuned
    assert {row["state"] for row in tuned} <= {"measured", "not measured"}
    page = (tmp_path / "gpu_verdict.md").read_text()
    assert verdict.markdown(rows) in page
    assert verdict.bars_table(rows) in page
    assert "none (dry run)" in (tmp_path / "gpu.html").read_text()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert verdict.bars_table(rows) in run("--report", str(tmp_path))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_nothing_is_timed_before_the_tests_pass(tmp_path):
    (tmp_path / "test_red.py").write_text("def test_red():\n    assert False\n")
    options = ("--device", "cpu", "--out", str(tmp_path), "--helpers", "0")
    options += ("--skip", "tune", "time", "network")
    output = run(*options, "--tests", str(tmp_path / "test_red.py"), expect=1)
    assert "1 failed" in output
    assert "nothing is timed" in output
    assert not (tmp_path / "gpu.csv").exists()
    output = run(*options, "--tests", "tests/nowhere", expect=1)
    assert "tests/nowhere is not there" in output


def test_tests_may_be_shared_out_among_processes(tmp_path):
    (tmp_path / "test_green.py").write_text("def test_a():\n    pass\n\ndef test_b():\n    pass\n")
    paths = [str(tmp_path / "test_green.py")]
    outcome = testing.run_tests(paths, tmp_path / "log", Deadline(60.0, lambda: 0.0), processes=2)
    assert not outcome.failed
    assert "2 passed" in outcome.told


@pytest.mark.parametrize(("first", "failed"), [("pass", False), ("assert False", True)])
def test_tests_that_take_too_long_are_cut_off(tmp_path, first, failed):
    slow = tmp_path / "test_slow.py"
    slow.write_text(
        f"import time\n\ndef test_first():\n    {first}\n\ndef test_slow():\n    time.sleep(60)\n"
    )
    log = tmp_path / "log"
    outcome = testing.run_tests([str(slow)], log, Deadline(8.0, lambda: 0.0))
    assert outcome.failed == failed
    assert f"1 ended and {int(failed)} failed" in outcome.told
    assert testing.last_line(log) in outcome.told


def test_tests_none_of_which_ended_are_not_green(tmp_path):
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\n\ndef test_slow():\n    time.sleep(60)\n")
    outcome = testing.run_tests([str(slow)], tmp_path / "log", Deadline(0.0, lambda: 1.0))
    assert outcome.failed
    assert "their share of the time" in outcome.told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_gpu_is_told_what_to_do(tmp_path):
    assert "--device cpu" in run("--out", str(tmp_path), expect=1)


def test_a_dry_run_never_replaces_what_was_measured():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert "--out" in result.stderr


def test_rows_of_a_run_that_is_cut_off_are_there(tmp_path):
    rows = Rows(tmp_path, {"gpu": "x, y"})
    rows.add("gpu.csv", {"column": "homeostat", **timed([0.001, 0.002])})
    assert (tmp_path / "gpu.csv").read_bytes().endswith(b"\n")
    (row,) = read_rows(tmp_path / "gpu.csv")
    assert (row["column"], row["gpu"], row["p50_ms"]) == ("homeostat", "x, y", "1.5")
    Rows(tmp_path, {})
    assert read_rows(tmp_path / "gpu.csv") == []


@CUDA
def test_the_device_clock_leaves_out_what_the_host_takes():
    import time

    clock = clock_of("cuda")
    x = torch.empty(2**28, device="cuda")
    y = torch.empty_like(x)

    def late():
        time.sleep(2e-3)
        y.copy_(x)

    candidates = {"copy": Candidate(lambda: y.copy_(x)), "late": Candidate(late)}
    prepare(clock, candidates)
    samples = take_turns(clock.sample, candidates, 10)
    copy, slow = (sorted(samples[name])[5] for name in ("copy", "late"))
    assert 1e-4 < copy < 1e-2
    assert slow < copy + 1e-3
    assert clock.follow("late", late) >= 2e-3
