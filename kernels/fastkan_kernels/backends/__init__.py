"""The backends, each of which implements the contractions F, G and H with the same arguments."""
