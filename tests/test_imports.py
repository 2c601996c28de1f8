from __future__ import annotations

from pathlib import Path

import pytest

import homeostat
from tests.rooms import RULES, violations

PACKAGE = Path(homeostat.__file__).parent


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
KNOWN = frozenset(FILES)


@pytest.mark.parametrize("module", FILES, ids=lambda name: name or "homeostat")
def test_imports_keep_to_the_rooms(module: str) -> None:
    path = FILES[module]
    package = path.name == "__init__.py"
    found = violations(path.read_text(), module, package=package, known=KNOWN)
    assert not found, "\n".join(found)


def test_every_room_of_the_core_is_read() -> None:
    assert {"", "errors", "spec", "layout", "moments", "reference", "ops.numpy"} <= KNOWN
    assert {module for module in KNOWN if "." not in module} <= set(RULES)


BREACHES = [
    ("spec", "import torch"),
    ("spec", "import numpy as np, jax.numpy as jnp"),
    ("moments", "def f():\n    import tensorflow as tf"),
    ("errors", "from homeostat.spec import BatchNormSpec"),
    ("spec", "from homeostat import Layout"),
    ("layout", "from .moments import Moments"),
    ("ops.torch", "from homeostat.ops.jax import moments"),
    ("ops.torch", "from homeostat.ops import jax"),
    ("ops.torch.plain", "from ..jax import moments"),
    ("ops.jax", "import torch"),
    ("ops.arguments", "import tensorflow"),
    ("ops.numpy", "from homeostat import reference"),
    ("keras", "from homeostat.reference import moments"),
    ("keras.layer", "from homeostat.studies.lesson import run_lesson"),
    ("torch", "from homeostat.ops.tensorflow import moments"),
    ("flax", "class A:\n    def f(self):\n        if self:\n            import torch"),
    ("kernels.cpu", "from homeostat.spec import BatchNormSpec"),
    ("models.torch", "from homeostat.models.keras import records"),
    ("audit", "import keras"),
    ("rules", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
    ("report.html", "from homeostat.studies.data import load_data"),
    ("report.html", "import homeostat.cli"),
    ("models", "from homeostat.models.keras import records"),
    ("ops.arguments", "def f():\n    from homeostat.ops.torch import moments"),
    ("studies.lesson", "from homeostat.cli import main"),
    ("bench.run", "from homeostat.cli import main"),
    ("bench.run", "from homeostat.report.bench.html import write_bench"),
    ("report.bench.html", "from homeostat.bench.cases import Case"),
    ("cli", "from homeostat.report.html import write_report"),
    ("cli", "import keras"),
    ("", "from homeostat import keras"),
    ("", "import homeostat.cli"),
    ("helpers", "import math"),
]


@pytest.mark.parametrize(("module", "source"), BREACHES)
def test_a_breach_is_seen(module: str, source: str) -> None:
    known = KNOWN | {"models.keras", "torch", "flax", "models.torch"}
    assert violations(source, module, package=False, known=known)


KEPT = [
    ("", "def __getattr__(name):\n    from homeostat import keras"),
    ("", "if TYPE_CHECKING:\n    from homeostat import keras as keras"),
    ("spec", "import math\nimport numpy as np\nfrom homeostat.errors import SpecError"),
    ("ops.torch.plain", "import torch\nfrom .elements import spread"),
    ("models", "def open_model(path):\n    from homeostat.models import keras"),
    ("models.torch", "import torch\nfrom homeostat.models import BatchNormRecord"),
    ("cli", "from homeostat import __version__\ndef run():\n    import homeostat.studies.lesson"),
    ("studies.train_torch", "import torch\nfrom homeostat.keras import BatchNormalization"),
]


@pytest.mark.parametrize(("module", "source"), KEPT)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert violations(source, module, package=False, known=KNOWN | {"models", "models.keras"}) == []
