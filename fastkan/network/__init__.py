"""Networks of KAN layers: forward, structure and files."""
