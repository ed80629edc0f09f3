"""Samplers: Langevin dynamics and block Gibbs sampling."""
