"""What is claimed of KANs, run on this package and reported as it comes out: ``python -m bench.claims``."""
