"""From a checkpoint to a bundle: exact rewrites, ONNX graphs, a check of each, an atomic write.

`pipeline.export_bundle` is the whole way, `pcsr-export` the command around it, `graphs.build_graphs` the
graphs alone, `half` float16 emulated for checks. Nothing is imported here, so that the command can explain a
missing torch or onnx.
"""

__all__: list[str] = []
