"""The pipeline of one audit: plan, features, Gram matrices, queries, scores, aggregates, results."""
