"""The choice of an implementation, for what is built on the core."""

from jaxbn.backends.dispatch import choose as choose
