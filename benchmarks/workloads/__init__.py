"""The workloads in each framework.

Each module has a class `Session`, made from a workload and a contestant's options, with

* ``parameters``: how many trainable numbers the model has;
* ``prepare(x, y)``: the data of `Workload.data` as the framework likes it best;
* ``train(x, y)``: trains on such data in order, once; returns when each step ended, and the last loss.
"""
