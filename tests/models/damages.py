"""What damages a file of each format."""

from __future__ import annotations

import random
from collections.abc import Mapping

from tests.models.keras_mutations import (
    WHOLE,
    mutate_directory,
    mutate_network,
    mutate_tree,
    mutate_weights,
)
from tests.models.mutations import (
    ANY,
    Mutation,
    mutate_header,
    mutate_members,
    mutate_message,
    mutate_opcodes,
    mutate_table,
)

BY_SUFFIX: Mapping[str, tuple[Mutation, ...]] = {
    ".safetensors": (mutate_header,),
    ".pt": (mutate_members,),
    ".pth": (mutate_opcodes,),
    ".index": (mutate_table,),
    ".onnx": (mutate_message,),
    ".keras": (mutate_network, mutate_network, mutate_weights, mutate_directory, mutate_members),
    ".h5": (mutate_tree,),
}
"""What damages files of a suffix beyond their bytes."""


def mutate(rng: random.Random, data: bytes, suffix: str) -> bytes:
    """Damage a file once or several times, half of the time in its format's own way."""
    aware = BY_SUFFIX.get(suffix, ())
    chosen = [
        rng.choice(aware if aware and rng.random() < 0.5 else ANY)
        for _ in range(rng.choice((1, 1, 1, 2, 4)))
    ]
    for change in sorted(chosen, key=lambda each: each not in WHOLE):
        data = change(rng, data)
    return data
