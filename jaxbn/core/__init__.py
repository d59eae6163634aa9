"""Batch normalization as four stages of pure functions; nothing here knows a framework.

    moments    x, where            -> count, mean, spread on this device  (moments.py)
    sync       moments             -> those of all devices that share     (sync.py)
    normalize  x, mean, var        -> y                                   (normalize.py)
    update     state, moments      -> the running statistics              (state.py)

`batch_norm` is the first three with a derivative of its own, and the fourth beside it.
No stage looks at the data to decide what to do, and no derivative rule contains a
collective: `by_input` (or `by_output`, which keeps y in place of x) marks where the two
passes of the derivative are, and between them are plain sums over the devices. The
passes are two linear primitives, `sums` and `expand`, each the transpose of the other
(`primitives`, `calculus`). A primitive (`kernel`) has a name, a derivative and a rule
for `vmap`; its loops are those of an implementation (`jaxbn.backends`), chosen when the
program is compiled, where it is known for which platform that is.
"""
