"""Run the script of the first argument, with timing tables of a moment: ``tiny_runs.quick_timing``, elsewhere."""

import runpy
import sys

from decoding.cost import timing

timing.SPAN, timing.POINT = 0.0, 0.02
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
