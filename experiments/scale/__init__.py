"""Training at scale: the same step on one device, on a mesh, on many hosts.

config, options    what can be chosen, the named configurations; checked, remembered
network    ResNets of linen and nnx, as the same pure functions
optimizer          SGD with momentum, warm-up and cosine
sources, source_files, augment, pipeline    images to batches, the same batches on
                   any number of processes
layout, step       where arrays lie; one training step, in any layout
processes, preemption    several processes; one that is lost, one that must end
checkpoint, metrics, memory    what a run leaves behind
train, session     the command, and the loop
arrays, evaluate, recalibrate, fold, export    what is done with a run
"""
