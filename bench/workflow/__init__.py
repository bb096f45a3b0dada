"""The workflow of a scientist, on this package and on pykan: does it find the formula, and how long does it take?

python -m bench.workflow --help
"""
