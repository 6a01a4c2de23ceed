"""Pictures of a model: functions that return arrays, and others that return matplotlib figures of them.

`kernels`, `layout`, `attention`, `positions`, `curves`, `confusion` and `mistakes` each make one kind of picture, in
the colours that matplotlib is set to. `report` chooses those of a checkpoint, `page` writes them down. Only figures
need matplotlib (`pip install 'tubevit[plot]'`).
"""
