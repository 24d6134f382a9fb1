"""BigNAS in JAX: one supernet, trained once, whose slices are networks ready to use."""
