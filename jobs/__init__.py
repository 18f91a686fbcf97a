"""The verbs: thin mains that know both the library and the machines. `python -m jobs.<verb> [key=value ...]`."""
