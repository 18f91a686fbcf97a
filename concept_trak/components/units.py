"""The lists of the measurement files that components runs need: `components/<name>/units.json`.

A run writes its list before it measures. A measurement file that no list has is garbage; a listed one can be verified.
"""

import json
from collections.abc import Iterator, Sequence

from concept_trak import UserError
from concept_trak.components.measure import measurement_from_bytes
from concept_trak.store.gc import UNIT, Garbage, existing
from concept_trak.store.store import Store
from concept_trak.store.verify import ALTERED, MISSING, SOUND, Finding

MEASUREMENTS = "components/units"
NAMES_FILE = "units.json"


def write_measurement_names(store: Store, name: str, units: Sequence[str]) -> None:
    """Write the list of the run `name`, in place of an earlier one."""
    store.replace(f"components/{name}/{NAMES_FILE}", json.dumps(sorted(units), indent=0).encode())


def named_measurements(store: Store) -> frozenset[str]:
    """Every measurement file that a run lists.

    Raises:
        UserError: a list cannot be read.
    """
    names = set[str]()
    for file in (name for name in store.names("components") if name.endswith(f"/{NAMES_FILE}")):
        names.update(_units(store, file))
    return frozenset(names)


def _units(store: Store, file: str) -> list[str]:
    try:
        return [str(unit) for unit in json.loads(store.read(file))]
    except ValueError:
        raise UserError(
            f"{store.uri}/{file} is damaged, so what its run needs is unknown; run its command again, "
            "or delete its folder"
        ) from None


def unneeded_measurements(store: Store, before: float) -> list[Garbage]:
    """Measurement files that no run lists, older than `before` (unix time)."""
    units = store.names(MEASUREMENTS)  # before the lists: what a run that begins now measures is not among them
    needed = named_measurements(store)
    free = existing(store, [unit for unit in units if unit not in needed])
    return [Garbage(UNIT, unit, size) for unit, size, age in free if age < before]


def verify_measurements(store: Store) -> Iterator[Finding]:
    """Every measurement file that is listed or exists: sound, altered, or missing though its run has written tables."""
    names = store.names("components")
    done = {name.split("/")[1] for name in names if "/components_groups/" in name}
    listed = {unit for run in done for unit in _units(store, f"components/{run}/{NAMES_FILE}")}
    for unit in sorted(listed | {name for name in names if name.startswith(f"{MEASUREMENTS}/")}):
        try:
            measurement_from_bytes(store.read(unit), unit)
        except FileNotFoundError:
            yield Finding(unit, MISSING)
        except ValueError:
            yield Finding(unit, ALTERED)
        else:
            yield Finding(unit, SOUND)
