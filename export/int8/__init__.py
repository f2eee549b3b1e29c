"""INT8: which layers can be quantised, the calibration cache, and the forms that engines fuse.

One choice of layers and scales, made by `pcsr.calibration` and kept in a cache file, gives three forms of the same
graphs: for TensorRT from 10 on and TensorRT-RTX, for TensorRT 8.6, and for ONNX Runtime on processors.
"""
