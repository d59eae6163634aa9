"""The networks that several programs use."""
