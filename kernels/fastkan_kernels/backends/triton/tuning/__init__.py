"""The choice of an implementation and of tile sizes for each contraction.

:mod:`.selection` makes the choice. :mod:`.tables` reads files of measured choices, and :mod:`.rules` makes choices
where nothing was measured. :mod:`.autotune` turns tuning on, :mod:`.tuner` measures the candidates, and :mod:`.cache`
saves the measured choices on disk.
"""
