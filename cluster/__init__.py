"""Machines as software: one verb, `map`, in this process or on a Ray cluster."""
