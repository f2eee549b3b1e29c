"""Routing on a GPU: a picture's way from upload to download without its pixels leaving the device.

`road` uploads and downloads; `inference` reads top to bottom, as `pcsr.runtime.inference` does for the host: it cuts a
picture (`memory`), enqueues the work of its tiles (`tiles`, `place`) and decides (`decide`) in one caller's lane
(`lanes`). `arrays` says what is asked of a device and of graphs. Devices are `cupy_device`, and `simulated` in NumPy;
graphs are run by TensorRT (`engine`, `context`, `recordings`) or by `onnxruntime`. The CUDA sources lie in `kernels/`,
`kernels` names them, and `twins` says in NumPy what each does.

What was proven where: the sources are compiled by NVRTC for five kinds of GPU, and by the host's compiler to be run
against their twins; everything above `cupy_device` and `engine` runs on the simulated device, `onnxruntime` too.
Nothing here has ever been executed on a GPU.
"""
