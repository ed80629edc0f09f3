"""Likelihoods: exact, and by annealed importance sampling."""
