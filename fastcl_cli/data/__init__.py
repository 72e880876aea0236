"""From image files to the pixels of a view.

``pack`` and ``source`` make FFCV files (betons), ``beton`` checks one before anything maps it,
``order`` and ``loader`` decode it, each image once per step, ``augment`` draws the random numbers
of the views, and ``views`` and ``colour`` compute them.
"""
