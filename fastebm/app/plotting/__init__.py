"""Figures, one function each: arrays in, a matplotlib Figure out (`.savefig(path)` writes it).

No pyplot and no global state: nothing here needs a display or changes a notebook's settings.
"""
