"""The human study: build pairs, show them to people, analyse their votes.

``ras-dit study build``, ``serve``, ``export`` and ``analyse`` are the way in; ``docs/study.md``
says what each does. Only serving needs more than the package itself: the extra ``study``.
"""
