"""Batch normalization for special cases: small batches, domains, time steps."""
