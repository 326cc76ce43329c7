"""Networks. Each takes its own frozen config; none knows a mesh, an experiment or a training stage."""
