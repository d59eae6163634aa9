"""Runs that measure what the package claims: python -m experiments COMMAND."""
