"""Pictures of a model, as arrays and as matplotlib figures.

`kernels`, `layout`, `attention`, `positions`, `curves`, `confusion` and `mistakes` each draw one kind of picture, in
the current colours of matplotlib. `report` selects the pictures of a checkpoint, `page` writes them to files. Only
figures need matplotlib (`pip install 'tubevit[plot]'`).
"""
