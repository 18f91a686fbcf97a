"""The verbs, `python -m jobs.<verb> [key=value ...]`: they connect the library (`concept_trak`) and the `cluster`."""
