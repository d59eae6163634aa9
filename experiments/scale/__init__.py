"""Training at scale: the same step on one device, on a mesh, on many hosts.

config       options, and the named configurations
resnet       ResNets of linen; resnet_nnx: the same ones of nnx
network      both kinds as pure functions; the share of a batch that is normalized
optimizer    SGD with momentum, warm-up and cosine
sources      data sets with random access; augment: crops and flips
pipeline     batches by Grain, the same ones on any number of processes
layout       meshes; jit, shard_map and pmap
step         one training step, one evaluation step
processes    several processes, and what happens when one of them is lost
checkpoint   saves a run, and finds the newest save that is whole
train        the loop
evaluate, recalibrate, fold, export    what is done with a trained run
cost, hlo    what the collectives cost, as a model and as compiled
"""
