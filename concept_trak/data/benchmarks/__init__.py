"""The data sets that the evaluation draws or reads."""
