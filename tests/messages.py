"""What every error message of Homeostat holds."""

from __future__ import annotations

import re

# What is wrong: what was expected. What to do.
_THREE_PARTS = re.compile(r"^.+?: expected [^.]*.*\. [A-Z][^.]*.*\.$", re.DOTALL)


def has_three_parts(error: BaseException) -> bool:
    """Return whether a message says what is wrong, what was expected and what to do."""
    return _THREE_PARTS.match(str(error)) is not None
