"""The exceptions and warnings that Homeostat raises.

Every message says what is wrong, what was expected and what to do. Errors about a bad argument are
also `ValueError` (or `TypeError`), so code that caught those keeps working.
"""

from __future__ import annotations


class HomeostatError(Exception):
    """Base of every error that Homeostat raises on purpose."""


class SpecError(HomeostatError, ValueError):
    """An option of batch normalization, or a combination of options, is not valid."""


class ShapeError(HomeostatError, ValueError):
    """An array's rank or shape does not fit the others or the chosen axis."""


class DTypeError(HomeostatError, TypeError):
    """An array has a dtype that batch normalization cannot work with."""


class NonFiniteBatchError(HomeostatError, ArithmeticError):
    """A batch held NaN or infinity and the policy is ``nonfinite="raise"``."""


class MissingExtraError(HomeostatError, ImportError):
    """A front door was asked for whose framework is not installed."""


class DataError(HomeostatError, ValueError):
    """A data file or folder is missing, truncated or not what it claims to be."""


class ModelFileError(DataError):
    """A model's file cannot be read, is not what it claims to be, or would have to run code."""


class MatchError(HomeostatError, ValueError):
    """It is not clear which batch norm of one model belongs to which of another."""


class UnsupportedError(HomeostatError, NotImplementedError):
    """What was asked for cannot be done here; the message says what can."""


class DisagreementError(HomeostatError, ArithmeticError):
    """A rewritten model's outputs differ from the original's by more than is allowed."""


class MissingUpdatesError(HomeostatError, RuntimeError):
    """A training step would not update the moving statistics of batch norms that it trains."""


class HomeostatWarning(UserWarning):
    """Base of every warning that Homeostat issues."""


class OneElementWarning(HomeostatWarning):
    """Statistics were taken over a single element per channel, so every output equals beta."""


class MissingUpdatesWarning(HomeostatWarning):
    """A training step does not update the moving statistics of batch norms that it trains."""
