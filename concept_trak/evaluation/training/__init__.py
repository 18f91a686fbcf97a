"""How the models of the benchmark are trained."""
