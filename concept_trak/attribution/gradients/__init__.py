"""Per-sample gradients: the pull-back through a network, the rule of each layer, norms and running sums."""
