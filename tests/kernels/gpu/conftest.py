from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="the GPU kernels need PyTorch")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill every tensor that is only allocated with NaN: what is not written is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        assert torch.ones(1).new_empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
