"""The benchmark suite: `pytest benchmarks`, with pytest-benchmark's own options and `--suite quick` or `full`.

rows.py says what a row of the results is, measure.py how it is verified and timed, conftest.py how rows become tests
and JSON. Every test file holds one table of rows and one test; variants come from `jitconv.variants.available()`.
"""
