"""The objective of equation 1: every term is a mean, and returns a scalar."""
