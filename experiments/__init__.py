"""Programs that show what the library does: python -m experiments COMMAND.

    common       files, checkpoints, errors, progress: what all programs share
    nets         networks that several programs train
    claims       `run`, `verify`, `report`: a file for each claim; `lab` is its engine
    digits       `train` without a configuration: a small net with and without a norm
    scale        `train --config`, `eval`, `recalibrate`, `fold`, `export`: ResNets
    collectives  `collectives`: what the devices of a step exchange, against a model
    bench        `bench`: errors, time and memory beside other libraries
    examples     pages to read, each a program: python -m experiments.examples.NAME

A room imports only from those above it, which a test enforces.
"""
