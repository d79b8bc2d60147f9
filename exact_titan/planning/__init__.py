"""The planner: GPU memory, FLOPs and hours of a run, before any GPU is rented.

1. ``run`` checks the config, and makes the model spec as a training run does.
2. ``memory`` traces one optimizer step without data, and ``trace`` records every allocation of the step. ``kernels``
   replaces the operators that allocate other sizes on CUDA than on the CPU.
3. ``compute`` counts the FLOPs of a step, with the documents of the packed dataset if the dataset exists.
4. ``report`` prints the plan.

This room stands below titan, because the planner traces the run that titan builds. The room may import all other rooms.
"""
