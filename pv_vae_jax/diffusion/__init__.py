"""Rectified flow, guidance and samplers: plain functions over a `velocity(x, t)` callable."""
