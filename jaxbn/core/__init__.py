"""Batch normalization as four stages of pure functions; nothing here knows a framework.

    moments    x, where            -> count, mean, spread on this device  (moments.py)
    sync       moments             -> those of all devices that share     (sync.py)
    normalize  x, mean, var        -> y                                   (normalize.py)
    update     state, moments      -> the running statistics              (state.py)

`batch_norm` is the first three with a derivative of its own, and the fourth beside it.
No stage looks at the data to decide what to do, and no derivative rule contains a
collective: the rules run before and after plain sums over the devices. What holds the
stages, from the ground up:

    op          a JAX primitive whose loops an implementation supplies (`backends`)
    primitives  the four ops moments, sums, expand, gate; calculus has their derivatives
    by_input    the derivative of a layer that keeps x; by_output: of one that keeps y
    pool        the merge of many moments; save: what a layer keeps
    checks, options, records, values, layers, weighting   arguments, and their messages
    placement, trees, interpreters                        shardings, pytrees, jet
"""
