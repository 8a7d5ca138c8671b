"""What the verbs of the command line and of the Python API do, one file each.

They have a package of their own: a module ``edgevit.export`` would hide the function of that name.
"""
