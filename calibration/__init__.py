"""INT8 calibration: ranges of activations on the pixels that reach them, what each layer costs, and which to quantise.

`pcsr-calibrate` measures a bundle on real pictures and writes a cache (`pcsr.export.int8.cache`), from which
`pcsr-export --precision int8 --calibration CACHE.json` needs no picture any more.
"""
