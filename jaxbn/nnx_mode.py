"""What an nnx module says when nobody told it whether to train or to evaluate."""

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
