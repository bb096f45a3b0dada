"""Networks of several layers: their evaluation, inspection, changes of structure, and files."""
