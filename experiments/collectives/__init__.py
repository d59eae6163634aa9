"""`collectives`: what the devices of a step exchange, against a model."""
