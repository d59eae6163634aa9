"""The settings that every kind of layer has, and what follows from them."""

from typing import Any

from jaxbn.core import options


class Settings:
    """Attributes of the modules of Flax, whose annotations add what they are."""

    axis: Any
    axis_name: Any
    axis_groups: Any
    axis_index_groups: Any
    momentum: Any
    epsilon: Any
    activation: Any
    debias: Any
    unbiased: Any
    skip_nonfinite: Any
    update_statistics: Any
    frozen: Any
    save: Any
    implementation: Any

    def _groups(self) -> Any:
        """The positions that share statistics, by Flax's name or by ours."""
        if self.axis_index_groups is None or self.axis_name is None:
            return self.axis_groups
        if self.axis_groups is not None:
            raise ValueError(
                "`axis_index_groups` must be None with `axis_groups`, got "
                f"{self.axis_index_groups!r} and {self.axis_groups!r}. They mean the "
                "same: give one."
            )
        return self.axis_index_groups

    def _averages(self) -> bool:
        """Tells whether the average depends on the number of updates."""
        return self.debias or self.momentum is None

    def _evaluates(self, mode: Any) -> bool:
        """Tells whether a call normalizes with the running statistics."""
        return options.flag("use_running_average", mode) or bool(self.frozen)

    def _fixes_affine(self) -> bool:
        """Tells whether scale and bias are constant."""
        return bool(self.frozen) and self.frozen != "statistics"
