"""What the package does, on real data, in under two minutes: ``python -m bench.demo``."""
