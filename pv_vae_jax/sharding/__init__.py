"""Placement of arrays on devices: axis names, meshes, rules from parameter path to partition."""
