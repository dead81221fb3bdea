"""Inference: from source voxels to labels on the source grid, whatever the order in which slices come.

A study's way through this room::

    sweep = Sweep(recipe, grids, output_channels=2, modality="CT")   # grids known, voxels not yet
    with Runner(sweep, engines) as runner:
        sweep.add(0, voxels[0:40])      # any slices, any order, channel by channel
        runner.run()                    # runs the windows that are ready, returns
        sweep.add(40, voxels[40:275])
        runner.run(progress=print)      # progress(done, total): windows
    outcome = sweep.result()            # Outcome: mask and probability on grids[reference_channel]

1. `Sweep` derives the prepared grid from the recipe and, as slices come, prepares voxels (`prepare`).
2. `windows` says where the windows lie and how much each counts (a partition of unity).
3. `places` says which of them are skipped, from Hounsfield units.
4. `Runner` fills window inputs, runs them on engines (mirrors, ensembles), hands outputs back.
5. `blend` sums outputs block by block along axis 0, and `labels` puts each finished block back on the
   source grid, so that no array of classes × volume is ever made. Of a classification, `scores` pools the
   windows' class scores instead.

The result is the same bit for bit in whatever order slices and outputs come. `Sweep`'s own protocol,
for loops other than `Runner` (a scheduler over many cases):

- ``add(first, voxels, channel=0)``: slices ``first …`` along axis 0 of that channel's source grid, shape
  ``(k, rows, columns)``, any real type (HU for CT). The sweep keeps a reference until they are prepared.
- ``ready() -> list[Window]``: windows that can run now and were not handed out yet, in canonical order;
  windows outside the recipe's place are skipped by themselves and never appear.
- ``window_shape``: spatial shape of a window's input; ``window_total``: number of windows, both None
  while unknown (a recipe that crops); ``windows_run``, ``windows_skipped`` so far.
- ``fill(window, out)``: writes the input, float32 ``(channels, *window_shape)``.
- ``accept(window, output)``: takes ``(output_channels, *window_shape)``, copied where it must wait.
- ``finished``: all windows accepted or skipped. ``result(provisional=False) -> Outcome``.
"""

from wetread.inference.runner import Runner, RunTimings, run
from wetread.inference.sweep import Outcome, Sweep
from wetread.inference.windows import Window

__all__ = ["Outcome", "RunTimings", "Runner", "Sweep", "Window", "run"]
