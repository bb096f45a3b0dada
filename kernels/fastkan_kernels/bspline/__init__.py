"""Ways to evaluate B-splines and their derivatives."""
