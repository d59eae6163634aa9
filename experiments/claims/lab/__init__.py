"""Shared by the claims: data, nets, training, statistics, files and the report."""
