"""A stand-in, in torch and torchvision, for mmcv's compiled operators (``mmcv._ext``).

``mmcv-lite`` ships the Python side of ``mmcv.ops``, but not the compiled module that it calls. ``extension.install``
installs this stand-in, so that mmdet3d's own classes import and run from pure wheels, with the same code on the CPU
and on a GPU. Operators that no model here calls raise when they are called, not when they are imported.
"""
