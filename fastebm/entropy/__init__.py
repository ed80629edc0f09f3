"""Nearest neighbours, and entropy estimates on them."""
