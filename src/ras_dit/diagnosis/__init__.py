"""How much region-adaptive and multirate sampling can gain on a model, measured on the model.

``ras-dit diagnose``: dense runs are recorded, what their velocity does is counted token by token,
and the errors that a sparse step makes are measured one by one.
"""
