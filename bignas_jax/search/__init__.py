"""The search of a trained supernet for the architectures that fit a budget, or for the whole Pareto front."""
