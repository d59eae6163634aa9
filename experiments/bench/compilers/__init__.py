"""Programs compiled for accelerators that are not here: compiled and read, never run.

devices            the chips, as they are described to their compilers
programs           what is compiled, and what is kept of it
layers, steps      how a layer and the training step of ResNet-50 are built
text, hlo          the text of a compiled program -> bytes, kernels, conditionals
run, largest       compiling, with what is known already; the largest batch that fits
table, plot        Markdown and a picture
"""
