"""A measurement as bytes, and back: safetensors that carry their own sha256."""

import hashlib

from safetensors import SafetensorError
from safetensors.torch import load, save

from concept_trak.components import Measurement
from concept_trak.store.header import header


def encode(found: Measurement) -> bytes:
    """As safetensors, with its own sha256."""
    named = {f"gradient/{n}": g.contiguous() for n, g in found.gradient.items()}
    named |= {f"rows/{n}": r.contiguous() for n, r in found.rows.items()} | {"strength": found.strength}
    return save(named, {"sha256": hashlib.sha256(save(named)).hexdigest()})


def decode(data: bytes, name: str) -> Measurement:
    """What `encode` wrote under a name.

    Raises:
        ValueError: it was cut short or altered.
    """
    try:
        read = load(data)
        said = header(data)[0]["__metadata__"]["sha256"]
        if said != hashlib.sha256(save(read)).hexdigest():
            raise ValueError("its numbers were altered")
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{name} is not as it was written ({error}); delete it and run the command again") from None
    cut = {p: {n.removeprefix(p): x for n, x in read.items() if n.startswith(p)} for p in ("gradient/", "rows/")}
    return Measurement(cut["gradient/"], cut["rows/"], read["strength"])
