"""Operators on the energy of a small perceptron: what exists for speed alone."""
