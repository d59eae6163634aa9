"""Training loops in which batch normalization needs a thought, a page each.

`python -m experiments.examples.sam` and so on; each prints what it shows.
"""
