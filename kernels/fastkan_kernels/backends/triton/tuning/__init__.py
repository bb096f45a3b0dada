"""The choice of a way and of tile sizes for each contraction: by rules, by tables of measurements, or by tuning.

:mod:`.selection` makes the choice. :mod:`.rules` are used where nothing was measured, :mod:`.tables` are files of
measured choices, and :mod:`.autotune` turns on the measuring of :mod:`.tuner`, whose choices :mod:`.cache` keeps.
"""
