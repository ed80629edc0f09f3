"""How the steps of a chain run: eagerly, compiled, as CUDA graphs, or in one kernel."""
