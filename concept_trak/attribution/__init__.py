"""The mathematics: states, directions, gradients, projection, curvature, scores; imports no other package."""
