"""Measurements, run by `python -m benchmarks`: a file each, with `Settings`, `run(settings)` and `table(results)`.

* `Settings` is a frozen dataclass; `python -m benchmarks NAME --config.FIELD=VALUE` changes a field.
* `run` measures and returns `{"results": ..., "aims": [harness.aim(...), ...]}`, all of it JSON.
* `table` makes the Markdown of `docs/performance.md` from `results`.

Importing a file is light: JAX, PyTorch and the rest are imported where they are used. Files without these three are no
benches.
"""
