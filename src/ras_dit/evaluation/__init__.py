"""Quality against speed, measured as the paper does and with the controls it leaves out.

``ras-dit evaluate generate | time | score | report``: files between the stages, each of which can
be killed at any moment and goes on when it is started again.
"""
