"""From where on a rule speaks: every threshold, with its default and its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """The numbers from which on rules speak; each rule's page says why it has its default.

    Args:
        vanishing_variance: a variance below this part of epsilon vanishes.
        dead_share: share of a norm's channels from which on dead ones are a warning.
        mean_to_std: largest |mean| / standard deviation, in float32.
        rounding: largest error by rounding the inputs to their dtype, in standard deviations.
        vanishing_gamma: a norm whose every abs(gamma) is below this is off.
        epsilon_to_variance: epsilon dominates a channel above this part of its variance.
        start_weight: largest weight of the start, 0 and 1, in moving statistics.
        memory: fewest batches that moving statistics average.
        skipped_share: share of skipped updates from which on they are a warning.
        elements: fewest elements per channel in an update.
        examples: fewest examples in an update.
        replica_examples: examples on each replica from which on statistics need not be shared.
        dropout_rate: smallest rate of a dropout that is a warning in front of a norm.
        mean_shift: largest distance of moving and observed mean, in standard deviations.
        log_variance_ratio: largest absolute log of observed over moving variance.
        shifted_share: share of a norm's channels from which on shifted ones are a warning.
        convention_elements: most elements per channel at which sample and population variance
            are told apart.
        agreement: smallest share of examples that moving and batch statistics put into one class.
        difference: largest relative difference of outputs with moving and with batch statistics.
        accuracy_drop: largest loss of accuracy by moving statistics.
    """

    vanishing_variance: float = 1e-3
    dead_share: float = 0.5
    mean_to_std: float = 1e3
    rounding: float = 0.05
    vanishing_gamma: float = 1e-3
    epsilon_to_variance: float = 0.5
    start_weight: float = 0.01
    memory: float = 5.0
    skipped_share: float = 0.01
    elements: float = 16
    examples: float = 4
    replica_examples: float = 32
    dropout_rate: float = 0.5
    mean_shift: float = 0.5
    log_variance_ratio: float = 0.7
    shifted_share: float = 0.1
    convention_elements: float = 16
    agreement: float = 0.8
    difference: float = 0.5
    accuracy_drop: float = 0.02
