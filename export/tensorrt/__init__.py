"""ONNX graphs to TensorRT engines, built where they run or, by TensorRT-RTX, ahead of time on any machine.

`cache.build_engines` keeps a folder of engines up to date, `command` is what `pcsr-export --trt` asks of it, and
`compare.compare_engines` holds engines against ONNX Runtime. Nothing is imported here, so that the command can
explain a missing library.
"""

__all__: list[str] = []
