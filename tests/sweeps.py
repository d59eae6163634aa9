"""What the quick suite leaves out of a table of cases."""

import pytest


def but_slow(cases, slow):
    """Parameters of a test, of which only the slow suite has those in `slow`.

    A case that is a tuple is the values of several arguments.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[pytest.mark.slow] if case in slow else [],
        )
        for case in cases
    ]
