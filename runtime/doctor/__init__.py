"""What is installed here, what works, what is missing, and the command that mends it.

`examine` gathers everything in one report. Whatever may crash or hang (drivers, TensorRT, a wheel built for
another processor) is tried in child processes with a time limit; the report says how each of them ended.
"""

from pcsr.runtime.doctor.examination import examine
from pcsr.runtime.doctor.report import Check, Report

__all__ = ["Check", "Report", "examine"]
