"""Does multirate sampling beat the paper, and fewer dense steps of either order, at equal cost?"""
