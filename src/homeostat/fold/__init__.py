"""Fold batch norms into the linear operations beside them: the same outputs, without the norms."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np

from homeostat.errors import DisagreementError, SpecError, UnsupportedError
from homeostat.fold.check import compare, medians
from homeostat.fold.plan import plan
from homeostat.fold.report import Folded, FoldReport, NormFold
from homeostat.models.foldable import Foldable
from homeostat.models.live import Batch, count_examples

__all__ = ["FoldReport", "Folded", "NormFold", "fold"]


def fold(
    model: Any,
    inputs: Batch | None = None,
    *,
    tolerance: float = 1e-5,
    forward: bool = True,
    rounds: int = 9,
    seed: int = 0,
) -> Folded:
    """Return a copy of a model whose batch norms are part of the linear layers beside them.

    A norm in inference is y = scale * x + offset of each channel, so that kernel' = kernel * scale
    and bias' = bias * scale + offset of the layer before it (Jacob et al. 2018, section 3.2) do
    the work of both; see `homeostat.fold.maths`. The copy is for inference: trained on, it has no
    batch norm. Before it is returned it is run beside the original, in float64.

    Args:
        model: a Keras 3 model, functional or Sequential, or a `torch.nn.Module` in eval mode. It
            stays as it is.
        inputs: a batch that the model is called with, which is checked and timed as well; None
            for random inputs alone. A PyTorch model that takes anything but one image, series or
            vector needs it, since nothing else tells what it is called with.
        tolerance: the largest difference of an output that is allowed, relative to the largest
            number among the outputs.
        forward: whether a norm may be folded into the layer after it where it cannot be folded
            into the one before it.
        rounds: how often both models are timed; 0 for not at all.
        seed: of the random inputs.

    Returns:
        The new model, and a report that tells for each norm into what it was folded, or why it was
        not.

    Raises:
        UnsupportedError: the model is of another kind, or its structure is not known.
        DisagreementError: the outputs differ by more than the tolerance.
        DataError: the model fails on the inputs.

    Example:
        >>> import torch
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        >>> model, report = fold(torch.nn.Sequential(*layers).eval())
        >>> model[1], report["1"].into
        (Identity(), '0')
        >>> report.error < 1e-6
        True
    """
    if not tolerance >= 0 or rounds < 0:
        raise SpecError(
            f"tolerance={tolerance}, rounds={rounds}: expected numbers of at least 0. Leave them "
            "out for what is usual."
        )
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    foldable = _foldable(model, inputs)
    planned = plan(foldable.sites(), forward=forward)
    folded = foldable.rewrite(planned.linears, planned.norms)
    notes, before = planned.sites.notes, foldable.parameters(model)
    if not planned.norms:
        return Folded(
            folded,
            FoldReport(planned.report, 0.0, None, "float64", before, before, notes=notes),
        )
    random = foldable.random_batch(inputs, np.random.default_rng(seed))
    batches = [random] if inputs is None else [random, inputs]
    agreement = compare(foldable, model, folded, batches)
    if not max(agreement.errors) <= tolerance:
        raise DisagreementError(
            f"the folded model's outputs differ by {max(agreement.errors):.3g} of the largest, "
            f"computed in {agreement.precision}: expected at most {tolerance:g}. The model is as "
            "it was. Fold it in a wider dtype, look for channels of vanishing variance (homeostat "
            "audit), or allow more with tolerance."
        )
    seconds = (None, None)
    if rounds:
        runners = [foldable.runner(each, batches[-1]) for each in (model, folded)]
        seconds = medians(*runners, rounds=rounds)
    return Folded(
        folded,
        FoldReport(
            planned.report,
            random_error=agreement.errors[0],
            given_error=None if inputs is None else agreement.errors[1],
            precision=agreement.precision,
            parameters_before=before,
            parameters_after=foldable.parameters(folded),
            seconds_before=seconds[0],
            seconds_after=seconds[1],
            examples=count_examples(batches[-1]),
            notes=(*notes, *filter(None, (agreement.note,))),
        ),
    )


def _foldable(model: Any, inputs: Batch | None) -> Foldable:
    # A live model's framework is loaded, so nothing is imported for the others.
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.Model):
        from homeostat.models.keras.fold import KerasFold

        return cast("Foldable", KerasFold(model))
    if torch is not None and isinstance(model, torch.nn.Module):
        from homeostat.models.torch.fold import TorchFold

        return cast("Foldable", TorchFold(model, inputs))
    raise UnsupportedError(
        f"cannot fold a {type(model).__name__}: expected a Keras 3 model or a torch.nn.Module. "
        "Pass the model itself, not its weights."
    )
