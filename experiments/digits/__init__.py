"""`train` without a configuration: a small net on digits, with and without a norm."""
