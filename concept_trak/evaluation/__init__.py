"""Evaluation of methods: benchmark, baselines, leaderboard, causal test, study."""
