"""The mode of an nnx layer: what training and evaluation do with its statistics."""

from typing import Any, Literal

NO_MODE = """No `use_running_average` argument was provided to BatchNorm. \
Consider one of the following options:

1. Pass `use_running_average` to the BatchNorm constructor:

  self.bn = jaxbn.nnx.BatchNorm(..., use_running_average=True/False)

2. Pass `use_running_average` to the BatchNorm __call__:

  self.bn(x, use_running_average=True/False)

3. Use `nnx.view` to create a view of the model with a specific \
`use_running_average` value:

  model_view = nnx.view(model, use_running_average=True/False)
"""


class Modes:
    """Sets the attributes that `nnx.view` may change."""

    _check: Any

    def set_view(
        self,
        use_running_average: bool | None = None,  # noqa: FBT001
        update_statistics: bool | None = None,  # noqa: FBT001
        frozen: bool | Literal["statistics"] | None = None,  # noqa: FBT001
    ):
        """Sets the mode of a view made by `nnx.view`.

        Args:
          use_running_average: normalize with the running statistics.
          update_statistics: move the running statistics in training.
          frozen: normalize with the running statistics in training too; if True,
            scale and bias are constant.
        """  # `nnx.view_info` reads arguments that are indented by two.
        given = {
            "use_running_average": use_running_average,
            "update_statistics": update_statistics,
            "frozen": frozen,
        }
        given = {name: value for name, value in given.items() if value is not None}
        self._check(given)
        for name, value in given.items():
            setattr(self, name, value)
