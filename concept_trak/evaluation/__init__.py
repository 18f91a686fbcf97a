"""Which method to believe: benchmark, baselines, leaderboard, causal test, study."""
