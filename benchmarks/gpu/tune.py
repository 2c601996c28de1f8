"""Time other plans than those that the kernels' table chooses, and say what its choice loses.

Nothing is changed: the best plans are rows, from which the table can be corrected by hand. Every
plan's results are held to float64 first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.cases import EPSILON, Case, Inputs, Parameters, make_inputs, make_parameters
from benchmarks.gpu.clock import Candidate, Clock, prepare, take_turns
from benchmarks.gpu.device import cache_bytes, count_multiprocessors, free_memory
from benchmarks.gpu.exact import clear_corner, fault
from benchmarks.gpu.rows import FAILED, MEASURED, NOT_MEASURED, WRONG, Row, timed
from benchmarks.gpu.times import first_line

Tensor = torch.Tensor

PURPOSES = ("forward", "backward", "moments", "normalize", "sums", "gradient")
"""The kernels' passes as their table calls them; the first two only where a tile stays on chip."""
ROUNDS = {"cuda": 12, "cpu": 2}
# What another plan may take: most of it its compilation.
PLAN_SECONDS = {"cuda": 3.0, "cpu": 0.1}
# Cases that share the time evenly; those after them get what is left.
FIRST_CASES = 3
# By how much each field of a plan is varied, alone.
FACTORS: Mapping[str, tuple[float, ...]] = {
    "num_warps": (0.5, 2),
    "block_o": (0.5, 2),
    "splits": (0.5, 2, 4),
    "block_c": (0.5, 2),
    "block_i": (0.5, 2),
    "registers": (0.75, 1.5),
}
# Which of the shape's sizes a block is of.
_SIZES = {"block_o": "outer", "block_c": "channels", "block_i": "inner"}
_LIMITS = {"num_warps": 32, "splits": 1024, "registers": 255}


class _Problem(NamedTuple):
    """A pass over a case's tensors: how it is run, and what plans there are for it.

    Args:
        run: the pass, with its results by name.
        sets: the inputs that take turns.
        parameters: what the channels have.
        shape: as the kernels divide the tensors.
        default: the plan that their table chooses.
        using: makes the context in which another plan is taken.
        at_once: how many programs certainly run at the same time.
        rounds: samples of each plan.
    """

    run: Callable[[Inputs], Mapping[str, Tensor]]
    sets: Sequence[Inputs]
    parameters: Parameters
    shape: Any
    default: Any
    using: Callable[[Any], Any]
    at_once: int
    rounds: int


def tune(cases: Sequence[Case], device: str, clock: Clock, deadline: Deadline) -> Iterator[Row]:
    """Yield a row for every plan that was timed, and for every case that was not reached."""
    try:
        from homeostat.kernels import gpu
    except ImportError as error:
        yield {"state": NOT_MEASURED, "note": f"no kernels to tune: {first_line(error)}"}
        return
    for number, case in enumerate(cases):
        mine = deadline.part(FIRST_CASES - number)
        if not mine.allows(2 * PLAN_SECONDS[device]):
            yield {**case.name(), "state": NOT_MEASURED, "note": "no time was left"}
            continue
        try:
            posed = list(_pose(gpu, case, device))
            for left, (purpose, problem) in zip(range(len(posed), 0, -1), posed, strict=True):
                for row in _descend(case, problem, device, clock, mine.part(left)):
                    yield {**case.name(), "work": purpose, **row}
        except Exception as error:
            # What goes wrong here must not cost the timing; a device in error would all the same.
            if "CUDA error" in str(error):
                raise
            note = f"{type(error).__name__}: {first_line(error)}"
            yield {**case.name(), "state": FAILED, "note": note}
        free_memory(device)


def _pose(gpu: Any, case: Case, device: str) -> Iterator[tuple[str, _Problem]]:
    """Yield the passes over a case's tensors."""
    sets = make_inputs(case, device, cache_bytes(device))
    parameters = make_parameters(case, device)
    clear_corner(case, sets[0], parameters)
    outer, channels, *image = case.shape
    inner = math.prod(image)
    last = case.layout == "NHWC"
    shape = gpu.Shape(*((outer * inner, channels, 1) if last else (outer, channels, inner)))
    x, at_once = sets[0].x, count_multiprocessors(device)
    defaults = {purpose: gpu.plan(shape, x.dtype, purpose, x.device) for purpose in PURPOSES}
    if not all(_meets(plan, shape, at_once) for plan in defaults.values()):
        raise ValueError("programs that wait for each other cannot run in turns. Use small shapes.")
    runs = _runs(gpu, case, sets, parameters, shape)
    for purpose, default in defaults.items():
        # A whole direction that streams is its passes, each with a plan of its own.
        if default.resident or purpose not in ("forward", "backward"):
            yield purpose, _Problem(
                runs[purpose], sets, parameters, shape, default, gpu.using,
                at_once, ROUNDS[device],
            )  # fmt: skip


def _runs(
    gpu: Any, case: Case, sets: Sequence[Inputs], parameters: Parameters, shape: Any
) -> Mapping[str, Callable[[Inputs], Mapping[str, Tensor]]]:
    """Return what runs each purpose, with its results by name."""
    slope = 0.0 if case.relu else None
    gamma, beta, count = parameters.gamma, parameters.beta, shape.outer * shape.inner

    def train(inputs: Inputs) -> Any:
        return gpu.train(inputs.x.detach(), gamma, beta, None, shape, EPSILON, slope)

    # Each set's own statistics, which the later passes need.
    moments = {id(inputs): gpu.moments(inputs.x.detach(), shape) for inputs in sets}
    kept = {id(inputs): train(inputs)[2] for inputs in sets}
    sums = {
        id(inputs): gpu.gradient_sums(
            inputs.x.detach(), inputs.dy, None, kept[id(inputs)], shape, slope
        )[0]
        for inputs in sets
    }

    def normalize(inputs: Inputs) -> Mapping[str, Tensor]:
        given = inputs.x.detach(), moments[id(inputs)], gamma, beta, None
        return {"y": gpu.normalize(*given, shape, EPSILON, slope)[0]}

    def backward(inputs: Inputs) -> Mapping[str, Tensor]:
        given = inputs.x.detach(), inputs.dy, None, kept[id(inputs)]
        return dict(
            zip(("dx", "dgamma", "dbeta"), gpu.backward(*given, shape, slope), strict=False)
        )

    def find_sums(inputs: Inputs) -> Mapping[str, Tensor]:
        given = inputs.x.detach(), inputs.dy, None, kept[id(inputs)]
        return dict(
            zip(("dgamma", "dbeta"), gpu.gradient_sums(*given, shape, slope)[0], strict=True)
        )

    def gradient(inputs: Inputs) -> Mapping[str, Tensor]:
        given = inputs.x.detach(), inputs.dy, None, kept[id(inputs)], sums[id(inputs)]
        return {"dx": gpu.input_gradient(*given, count, shape, slope)}

    return {
        "forward": lambda inputs: {"y": train(inputs)[0]},
        "backward": backward,
        "moments": lambda inputs: dict(
            zip(("mean", "variance"), gpu.moments(inputs.x.detach(), shape), strict=True)
        ),
        "normalize": normalize,
        "sums": find_sums,
        "gradient": gradient,
    }


def _descend(
    case: Case,
    problem: _Problem,
    device: str,
    clock: Clock,
    deadline: Deadline,
) -> Iterator[Row]:
    """Yield the default's row and others', field by field from the best plan so far."""
    best, least = problem.default, 1.0
    seen = set()
    for field in ("default", *FACTORS):
        for plan in _vary(problem, best, field):
            if plan in seen:
                continue
            if not deadline.allows(PLAN_SECONDS[device]):
                yield {"plan": tell(plan), "state": NOT_MEASURED, "note": "no time was left"}
                return
            seen.add(plan)
            row = _measure(case, problem, plan, clock)
            yield row
            if row["state"] == MEASURED and row["of_default"] < least:
                best, least = plan, row["of_default"]
            elif field == "default" and row["state"] != MEASURED:
                return


def _meets(plan: Any, shape: Any, at_once: int) -> bool:
    """Return whether programs that wait for each other all run at the same time."""
    together = plan.splits * plan.blocks(shape)
    return not plan.resident or plan.splits == 1 or together <= at_once


def _vary(problem: _Problem, best: Any, field: str) -> Iterator[Any]:
    """Yield a plan's neighbours that differ in one field, as far as they fit the shape."""
    if field == "default":
        yield best
        return
    # A plan need not limit registers.
    now = getattr(best, field)
    for factor in FACTORS[field] if now else ():
        value = int(now * factor)
        if not 1 <= value <= _LIMITS.get(field, 2**14):
            continue
        # A block is a power of two, and none need be twice as wide as what there is.
        if field in _SIZES and value >= 2 * getattr(problem.shape, _SIZES[field]):
            continue
        plan = best._replace(**{field: value})
        tiles = plan.tiles(problem.shape)
        if plan.resident:
            # One tile stays on chip in each split, and all splits run at once.
            plan = plan._replace(splits=tiles)
            if not _meets(plan, problem.shape, problem.at_once):
                continue
        elif plan.splits > tiles:
            continue
        yield plan


def _measure(case: Case, problem: _Problem, plan: Any, clock: Clock) -> Row:
    """Return a plan's row: timed in turns with the default."""
    row: Row = {"plan": tell(plan), "default": "yes" if plan == problem.default else ""}

    def candidate(chosen: Any) -> Candidate:
        turns = itertools.cycle(problem.sets)
        return Candidate(lambda: problem.run(next(turns)), lambda: problem.using(chosen))

    try:
        with problem.using(plan):
            results = problem.run(problem.sets[0])
        wrong = fault(case, results, problem.sets[0], problem.parameters)
        if wrong is not None:
            return row | {"state": WRONG, "note": wrong}
        candidates = {"default": candidate(problem.default), "plan": candidate(plan)}
        prepare(clock, candidates)
        samples = take_turns(clock.sample, candidates, problem.rounds)
    except Exception as error:
        # Many plans need more registers or memory than a multiprocessor has.
        if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
            raise
        return row | {"state": FAILED, "note": f"{type(error).__name__}: {first_line(error)}"}
    times = {name: timed(values) for name, values in samples.items()}
    of_default = times["plan"]["p50_ms"] / max(times["default"]["p50_ms"], 1e-9)
    return row | times["plan"] | {"of_default": round(of_default, 4)}


def tell(plan: Any) -> str:
    """Return a plan in one cell."""
    given = plan._asdict().items()
    return " ".join(f"{name}={int(value)}" for name, value in given if value is not None)


def summarize_tuning(rows: Sequence[Mapping[str, str]]) -> str:
    """Return what the default choice lost against the best plan, a line for each call."""
    calls: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("dtype", "layout", "shape", "form", "work"))
        calls.setdefault(key, []).append(row)
    lines = ["| call | plans | default, ms | best of default | best plan |", "|---" * 5 + "|"]
    for key, mine in calls.items():
        ran = [row for row in mine if row["state"] == MEASURED]
        name = " ".join(key).strip() or "kernels"
        if not ran:
            why = next((row["note"] for row in mine if row["note"]), "")
            lines.append(f"| {name} | 0 | {mine[0]['state']}: {why} | | |")
            continue
        best = min(ran, key=lambda row: float(row["of_default"]))
        default = next((row["p50_ms"] for row in ran if row["default"]), "")
        lines.append(
            f"| {name} | {len(ran)} | {default} | {float(best['of_default']):.2f} "
            f"| {best['plan']} |"
        )
    wrong = [row for row in rows if row["state"] == WRONG]
    lines += [
        f"\nWRONG: {row['shape']} {row['work']} {row['plan']}: {row['note']}" for row in wrong
    ]
    return "\n".join(lines)
