"""concept-trak: which training samples taught a diffusion model a concept, and how much.

The idea in one line: every loss of the family touches the parameters only through the noise prediction, so its
gradient is a *direction* pulled back through the network, `J(s)^T v(s)`. Read `method.py`, `direction.py`,
`gradient.py`, `features.py`, `stages.py`.
"""

__version__ = "0.1.0"

# Part of every fingerprint. Rises whenever a change moves the numbers of a feature beyond rounding, so that features
# of two numerics are never mixed.
NUMERICS = 4


class UserError(ValueError):
    """What the user can mend: shown as one message without a traceback (exit code 2).

    The message says what happened, what was expected, and what to do. Any other exception is a bug of ours.
    """
