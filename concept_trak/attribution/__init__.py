"""The mathematics: states, directions, gradients, projection, curvature, scores. Imports nothing else of the project."""
