"""Runs work on machines: one method, `map`, in this process or on a Ray cluster."""
