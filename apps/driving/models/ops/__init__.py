"""A stand-in, in torch and torchvision, for the compiled operators of mmcv (``mmcv._ext``).

``mmcv-lite`` ships the Python side of ``mmcv.ops`` and not the compiled module that it calls. ``extension.install``
puts this module in its place, so that mmdet3d's own classes import and run from pure wheels, on the CPU and on a GPU
with the same code. Operators that no model here calls raise when they are called, not when they are imported.
"""
