"""What Trimaran costs on this machine, beside floors: ``python -m bench``.

A floor is the least that anybody would have to do for the same job by hand. It is
measured in the same run, in turn with what is compared to it, so that a slow or busy
machine slows both. Every number is the median of several rounds.
"""
