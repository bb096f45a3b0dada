"""Networks of several layers: forward, inspection, changes of structure, and files."""
