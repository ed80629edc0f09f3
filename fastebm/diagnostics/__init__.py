"""Whether chains have mixed, and what their averages are worth: numbers by ArviZ, and pictures."""

from fastebm.diagnostics.convergence import Summary, summary
from fastebm.diagnostics.pictures import rank_plot, trace_plot

__all__ = ["Summary", "rank_plot", "summary", "trace_plot"]
