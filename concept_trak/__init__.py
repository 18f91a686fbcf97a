"""concept-trak: which training samples taught a diffusion model a concept, and how much.

Every loss of the family depends on the parameters only through the noise prediction, so its gradient is a *direction*
pulled back through the network, `J(s)^T v(s)`. To read the code, start with `attribution/method.py`, `direction.py`,
`gradients/pull_back.py`, `features.py`, then `audit/featurize.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concept_trak.attribution.concept import Concept as Concept
    from concept_trak.attribution.method import METHODS as METHODS
    from concept_trak.attribution.method import Method as Method
    from concept_trak.attribution.projector import Projector as Projector
    from concept_trak.attributor import Attribution as Attribution
    from concept_trak.attributor import Attributor as Attributor
    from concept_trak.attributor import dataset as dataset
    from concept_trak.audit.finished_audit import open_audit as open_audit
    from concept_trak.config import AuditConfig as AuditConfig
    from concept_trak.models import load_model as load_model
    from concept_trak.report.publish_audit import run_audit as run_audit

__version__ = "0.1.0"

# Part of every fingerprint. Rises whenever a change moves the numbers of a feature beyond rounding, so that features
# of two numerics are never mixed.
NUMERICS = 4

# Imported when they are first used: opening a finished audit needs neither torch nor diffusers.
HOMES = {
    "load_model": "models",
    "dataset": "attributor",
    "Attributor": "attributor",
    "Attribution": "attributor",
    "Concept": "attribution.concept",
    "Method": "attribution.method",
    "METHODS": "attribution.method",
    "Projector": "attribution.projector",
    "AuditConfig": "config",
    "run_audit": "report.publish_audit",
    "open_audit": "audit.finished_audit",
}
__all__ = [*HOMES, "UserError"]  # pyright: ignore[reportUnsupportedDunderAll]


class UserError(ValueError):
    """What the user can mend: shown as one message without a traceback (exit code 2).

    The message says what happened, what was expected, and what to do. Any other exception is a bug of ours.
    """


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
