"""Read damaged model files, and see that nothing comes of them but an answer or our own errors.

``python -m tests.models.fuzz --count 10000 --seed 0`` reads that many, in a process of its own that
is watched: for crashes, for hanging, for memory, for other exceptions, for files it writes and
programs it starts. What fails is kept in a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.models.damages import mutate

SECONDS = 20.0
"""How long one file may take."""
READER = "homeostat.models.files:read_model_file"


class Sample(NamedTuple):
    """A whole model.

    Args:
        name: what to call it.
        path: what is read.
        files: what may be damaged of it.
    """

    name: str
    path: Path
    files: tuple[Path, ...]


def one(path: Path) -> Sample:
    return Sample(path.name, path, (path,))


def build_torch(folder: Path) -> Iterator[Sample]:
    import torch

    from tests.models.files.networks import Network, trained

    state = trained(Network(blocks=2)).state_dict()
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters()).state_dict()
    torch.save(state, folder / "state.pt")
    torch.save({"epoch": 1, "optimizer": optimizer, "model": state}, folder / "checkpoint.pt")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    yield from map(one, sorted(folder.iterdir()))


def build_safetensors(folder: Path) -> Iterator[Sample]:
    from safetensors.torch import save_file

    from tests.models.files.networks import Network, trained

    save_file(trained(Network(blocks=2)).state_dict(), folder / "float.safetensors")
    save_file(trained(Network(blocks=1)).bfloat16().state_dict(), folder / "narrow.safetensors")
    yield from map(one, sorted(folder.iterdir()))


def build_tensorflow(folder: Path) -> Iterator[Sample]:
    command = [sys.executable, "-m", "tests.models.files.write_tensorflow", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("tf1/model.ckpt-3", "objects/tf_keras/weights"):
        prefix = folder / name
        files = tuple(prefix.with_name(prefix.name + end) for end in (".index", ".index"))
        data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
        yield Sample(name, prefix, (*files, data))
    newest = folder / "tf1"
    yield Sample("tf1", newest, (newest / "checkpoint",))


def build_onnx(folder: Path) -> Iterator[Sample]:
    import warnings

    import torch

    from tests.models.files.networks import Network, trained

    network, example = trained(Network(blocks=2)), (torch.zeros(1, 3, 8, 8),)
    options: Any = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, example, folder / "a.onnx", dynamo=False, **options)
    yield from map(one, sorted(folder.iterdir()))


def build_keras(folder: Path) -> Iterator[Sample]:
    _save_with_keras(folder)
    yield from map(one, sorted(folder.glob("*.keras")))


def build_hdf5(folder: Path) -> Iterator[Sample]:
    # One process saves the files of both formats.
    saved = folder.parent / "keras"
    if not saved.exists():
        _save_with_keras(folder)
        saved = folder
    for path in sorted(saved.glob("*.h5")):
        copied = folder / path.name
        copied.write_bytes(path.read_bytes())
        yield one(copied)


def _save_with_keras(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.models.save_keras_models", str(folder), "small"]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    subprocess.run(command, check=True, capture_output=True, env=environment)


BUILDERS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "torch": build_torch,
    "safetensors": build_safetensors,
    "tensorflow": build_tensorflow,
    "onnx": build_onnx,
    "keras": build_keras,
    "hdf5": build_hdf5,
}
"""What writes the samples of a format into an empty folder."""


class Answer(NamedTuple):
    """What came of one file.

    Args:
        kind: "read", "refused", or what is wrong.
        detail: the error.
        net: whether only the last resort made it an error of ours.
    """

    kind: str
    detail: str = ""
    net: bool = False


@dataclass
class Outcome:
    """What came of all files.

    Args:
        counts: how many there were for each format and kind.
        failures: what is wrong, with the number of the file.
        net: errors that only the last resort made ours, by their text's beginning.
        seconds: for all.
        slowest: the longest for one.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[tuple[int, str, Answer]] = field(default_factory=list)
    net: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0


class Watched:
    """A process that reads files, and is started again when one of them ends it.

    Args:
        home: a folder for what it might write.
        reader: the function that reads, as "module:name".
        seconds: how long one file may take.
        warm: files that are read before anything is watched, so that all modules are there.
    """

    def __init__(
        self,
        home: Path,
        reader: str = READER,
        seconds: float = SECONDS,
        warm: tuple[Path, ...] = (),
    ) -> None:
        self.reader, self.seconds, self.warm = reader, seconds, warm
        self.folders = [home / "current", home / "temporary"]
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def start(self) -> subprocess.Popen[str]:
        """Return the process, a new one where the last file ended it."""
        self.process = self.process or self._start()
        return self.process

    def _start(self) -> subprocess.Popen[str]:
        root = Path(__file__).parents[2]
        command = [sys.executable, "-B", "-m", "tests.models.fuzz_worker", self.reader]
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        path = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [*command, *map(str, self.warm)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folders[0],
            env=kept | {"PYTHONPATH": path, "TMPDIR": str(self.folders[1])},
        )
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready == "ready\n", process.communicate()[1]
        return process

    def read(self, path: Path) -> Answer:
        """Read one file, and say what came of it."""
        process = self.start()
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{json.dumps(str(path))}\n")
        stdin.flush()
        if not select.select([stdout], [], [], self.seconds)[0]:
            self._stop()
            return Answer("hang", f"after {self.seconds} s")
        line = stdout.readline()
        if not line:
            code = process.wait()
            self._stop()
            return Answer("crash", f"exit code {code}")
        answer = Answer(*json.loads(line))
        written = [str(each) for folder in self.folders for each in folder.iterdir()]
        for name in written:
            Path(name).unlink()
        return Answer("written", ", ".join(written)) if written else answer


def samples_in(folder: Path, formats: Mapping[str, Any] = BUILDERS) -> dict[str, list[Sample]]:
    """Write the samples of all formats, each into a folder of its own."""
    found = {}
    for name, build in formats.items():
        (folder / name).mkdir(parents=True)
        found[name] = list(build(folder / name))
    return found


def run(
    folder: Path,
    count: int,
    seed: int,
    *,
    seconds: float = float("inf"),
    keep: Path | None = None,
    formats: Mapping[str, Any] = BUILDERS,
) -> Outcome:
    """Read damaged files.

    Args:
        folder: an empty one.
        count: how many.
        seed: of the damages; file number i is the same in every run with this seed.
        seconds: when to stop though there are fewer.
        keep: where to keep what failed.
        formats: which of `BUILDERS`.
    """
    samples = samples_in(folder / "samples", formats)
    flat = [(name, sample) for name, found in samples.items() for sample in found]
    outcome, start = Outcome(), time.monotonic()
    with Watched(folder / "worker", warm=tuple(sample.path for _, sample in flat)) as watched:
        for _, sample in flat:
            answer = watched.read(sample.path)
            assert answer.kind == "read", f"{sample.name} is whole: {answer}"
        for number in range(count):
            begin = time.monotonic()
            if begin - start > seconds:
                break
            name, sample, file, damaged = damage(samples, seed, number)
            answer = read_damaged(watched, sample, file, damaged)
            outcome.slowest = max(outcome.slowest, time.monotonic() - begin)
            outcome.counts[name, answer.kind] += 1
            if answer.net:
                outcome.net[answer.detail[:200]] += 1
            if answer.kind not in ("read", "refused"):
                outcome.failures.append((number, sample.name, answer))
                if keep is not None:
                    (keep / str(number)).mkdir(parents=True, exist_ok=True)
                    (keep / str(number) / file.name).write_bytes(damaged)
    outcome.seconds = time.monotonic() - start
    return outcome


def damage(
    samples: Mapping[str, list[Sample]], seed: int, number: int
) -> tuple[str, Sample, Path, bytes]:
    """Return the format and the sample of a number, one of its files, and that file damaged."""
    rng = random.Random(f"{seed}-{number}")
    name = list(samples)[number % len(samples)]
    sample = rng.choice(samples[name])
    file = rng.choice(sample.files)
    return name, sample, file, mutate(rng, file.read_bytes(), file.suffix)


def read_damaged(watched: Watched, sample: Sample, file: Path, damaged: bytes) -> Answer:
    """Put a damaged file in the place of a whole one, read it, and mend it."""
    # A new process reads the whole ones first.
    watched.start()
    whole = file.read_bytes()
    file.write_bytes(damaged)
    try:
        return watched.read(sample.path)
    finally:
        file.write_bytes(whole)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-failures")
    parser.add_argument("--formats", nargs="*", default=list(BUILDERS), choices=list(BUILDERS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(
            Path(folder),
            arguments.count,
            arguments.seed,
            keep=arguments.keep,
            formats={name: BUILDERS[name] for name in arguments.formats},
        )
    sys.stdout.write(told(outcome))
    return bool(outcome.failures)


def told(outcome: Outcome) -> str:
    """Return what came of all files in words."""
    lines = [f"{n:12} {kind:10} {c:7,}" for (n, kind), c in sorted(outcome.counts.items())]
    lines.append(
        f"{sum(outcome.counts.values()):,} files in {outcome.seconds:.0f} s, the slowest "
        f"{outcome.slowest:.1f} s; {len(outcome.failures)} failed"
    )
    lines += [f"  last resort {count:5} {text}" for text, count in outcome.net.most_common()]
    lines += [f"  {i} {name}: {a.kind}, {a.detail}" for i, name, a in outcome.failures[:50]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
