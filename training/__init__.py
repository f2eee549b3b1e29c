"""Training: a folder of photographs to a PCSR network, in the paper's two phases.

Phase 0 trains the backbone with the heavy upsampler, phase 1 the lighter upsamplers and the classifier on top
of them. `pcsr-train` is the way in; a run is deterministic on a CPU and can be killed and resumed at any
moment without changing its result.
"""
