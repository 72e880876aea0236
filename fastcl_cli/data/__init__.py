"""From image files to the pixels of a view.

``parts`` lists what a folder or a name holds (``images``, ``builtin``, ``torchvision_sets``),
``pack`` and ``source`` make FFCV files (betons) of it, ``beton`` checks one before anything maps
it, ``order`` and ``loader`` decode it, each image once per step, ``augment`` draws the random
numbers of the views, and ``views`` and ``colour`` compute them.
"""
